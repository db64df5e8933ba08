"""What an image installs: `python3 deploy/images/requirements.py EXTRA[,EXTRA] > requirements.txt`.

The dependencies of csm-client and csm-serve[EXTRA,…], without those two themselves: an image copies their code. So a
change of code leaves the layer of dependencies alone. Needs Python's standard library alone.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def requirements(extras: str) -> list[str]:
    """extras: with commas between. Raises: KeyError when there is no such extra."""
    client = tomllib.loads((ROOT / "gateway/client/pyproject.toml").read_text())["project"]
    serve = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    own = client["dependencies"] + serve["dependencies"]
    known = serve["optional-dependencies"]
    return sorted({*own, *(line for extra in extras.split(",") for line in _expanded(known, extra))} - {_client(own)})


def _expanded(extras: dict[str, list[str]], extra: str) -> list[str]:
    found = []
    for requirement in extras[extra]:
        if own := re.fullmatch(r"csm-serve\[([\w,]+)\]", requirement):
            found += [line for name in own[1].split(",") for line in _expanded(extras, name)]
        else:
            found.append(requirement)
    return found


def _client(requirements: list[str]) -> str:
    return next(line for line in requirements if line.startswith("csm-client"))


if __name__ == "__main__":
    print("\n".join(requirements(sys.argv[1])))
