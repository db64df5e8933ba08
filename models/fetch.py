"""`python -m models.fetch FOLDER`: put the files of bundle CSM_MODEL where the services will look for them.

A bundle that ships with its weights (`embedded`) is copied to FOLDER/<name>; services then run with
CSM_MODEL=FOLDER/<name>. Files of the hub go to the hub's own cache (HF_HOME), at the revisions that the
bundle names; services then run with the same HF_HOME and HF_HUB_OFFLINE=1. Run again, it does only
what is missing. Knows no torch.
"""

from __future__ import annotations

import filecmp
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from models.bundle import Bundle, known_bundles, load_bundle
from models.files import PartError


def fetch(bundle: Bundle, folder: Path) -> list[Path]:
    """The bundle's files, all at hand now. Raises: PartError when one cannot be had or moves under its name."""
    for part, source in _sources(bundle):
        # A branch's name means other files tomorrow; replicas started on two days would disagree.
        if "repo" in source and not re.fullmatch(r"[0-9a-f]{40}", source.get("revision", "")):
            raise PartError(
                part,
                source["repo"],
                f"revision {source.get('revision')!r} is not a commit",
                "name a commit of 40 hex digits in bundle.toml",
            )
    _, config, weights = bundle.generator.resolve()
    paths = [*weights, *([config] if config else [])]
    for part in ("text_tokenizer", "mimi", "watermark"):
        paths.extend(getattr(bundle, part).resolve().values())
    home = bundle.folder.resolve()
    name = next((name for name, place in known_bundles().items() if place == home), home.name)
    local = [path for path in paths if path.resolve().is_relative_to(home)]
    if not local:
        return paths
    copied = [_copy(path.resolve(), folder / name / path.resolve().relative_to(home)) for path in local]
    # Last: where there is a bundle.toml, every file that it names is there.
    copied.append(_copy(home / "bundle.toml", folder / name / "bundle.toml"))
    return [path for path in paths if path not in local] + copied


def _sources(bundle: Bundle) -> Iterator[tuple[str, dict[str, str]]]:
    for part in ("generator", "text_tokenizer", "mimi", "watermark"):
        for source in getattr(bundle, part).sources:
            yield part, source


def _copy(source: Path, target: Path) -> Path:
    """Copy unless it is there already; a file half written never bears the name."""
    if target.is_file() and filecmp.cmp(source, target, shallow=False):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    shutil.copyfile(source, partial)
    partial.replace(target)
    return target


def main(arguments: list[str]) -> None:
    if len(arguments) != 1:
        sys.exit("usage: python -m models.fetch FOLDER (CSM_MODEL names the bundle)")
    folder = Path(arguments[0])
    os.environ.setdefault("HF_HOME", str(folder / "hub"))  # before huggingface_hub is imported
    try:
        bundle = load_bundle()
        paths = fetch(bundle, folder)
    except (PartError, OSError) as error:
        sys.exit(f"models.fetch: {error}")
    total = sum(path.stat().st_size for path in paths)
    print(f"{bundle.id}: {len(paths)} files, {total / 1e6:.1f} MB at hand under {folder}")


if __name__ == "__main__":
    main(sys.argv[1:])
