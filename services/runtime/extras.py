"""Whether the packages of an extra of csm-serve are installed; checked before a service imports them.

Knows the standard library alone. Where csm-serve itself is not installed (an image copies its code), nothing is checked.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib import metadata

DISTRIBUTION = "csm-serve"
# Installed with --no-deps (requirements-nodeps.txt says why), so no extra can name them.
NO_DEPS = {
    "all": ("moshi==0.2.13", "silentcipher==1.0.5"),
    "tokenizer": ("moshi==0.2.13",),
    "codec": ("moshi==0.2.13",),
    "watermark": ("silentcipher==1.0.5",),
}


def require_extra(*extras: str) -> None:
    """Exit with one line that says what to install, unless all that these extras name is there."""
    if line := missing_line(*extras):
        sys.exit(f"cannot start: {line}")


def missing_line(*extras: str) -> str:
    """Which packages are missing, and how to get them; empty when none is."""
    try:
        names = {name for extra in extras for name in _requirements(extra)}
    except metadata.PackageNotFoundError:
        return ""
    absent = sorted(name for name in names if not _is_installed(name))
    pins = sorted(
        {pin for extra in extras for pin in NO_DEPS.get(extra, ()) if not _is_installed(pin.partition("==")[0])}
    )
    if not absent and not pins:
        return ""
    commands = [f"pip install '{DISTRIBUTION}[{','.join(extras)}]'"] if absent else []
    commands += [f"pip install --no-deps {' '.join(pins)}"] if pins else []
    missing = [*absent, *(pin.partition("==")[0] for pin in pins)]
    return f"not installed: {', '.join(missing)}; {' and '.join(commands)}"


def _requirements(extra: str) -> Iterator[str]:
    """Names of the distributions that the extra asks for, through the extras that it is made of."""
    for line in metadata.requires(DISTRIBUTION) or ():
        requirement, _, marker = line.partition(";")
        if not re.search(rf"""extra == ["']{re.escape(extra)}["']""", marker):
            continue
        name, inner = re.match(r"([\w.-]+)(?:\[([\w,-]+)\])?", requirement).groups()  # type: ignore[union-attr]
        if name == DISTRIBUTION:
            for one in inner.split(","):
                yield from _requirements(one)
        else:
            yield name


def _is_installed(name: str) -> bool:
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True
