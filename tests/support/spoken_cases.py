"""The cases of tests/spoken/cases: one file a kind, a text and its spoken form a line, \\u escapes as in Python."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})|\\U([0-9a-fA-F]{8})|\\([ntr\\])")
_SHORT = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}


@dataclass(frozen=True)
class Case:
    kind: str
    text: str
    spoken: str


def read_cases(folder: Path = Path(__file__).parents[1] / "spoken/cases") -> list[Case]:
    """In the files' order. A line that begins with "# " and has no tab says where the kind is from."""
    cases = []
    for path in sorted(folder.glob("*.tsv")):
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.strip() and not (line.startswith("# ") and "\t" not in line):
                text, spoken = line.split("\t")
                cases.append(Case(path.stem, _unescape(text), _unescape(spoken)))
    return cases


def _unescape(text: str) -> str:
    return _ESCAPE.sub(lambda m: chr(int(m[1] or m[2], 16)) if m[1] or m[2] else _SHORT[m[3]], text)
