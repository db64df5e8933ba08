"""Words with a slash between them."""

from __future__ import annotations

import re

_SLASH_WORDS = re.compile(r"(?<![\w/.:])([A-Za-z]+)/([A-Za-z]+)(?:/([A-Za-z]+))?(?![\w/])")
_SLASH_OR = frozenset("he she his her him they yes true pass male female on mother mr s husband wife".split())


def read_slashes(text: str) -> str:
    """`he/she` → he or she; `read/write` → read slash write."""
    return _SLASH_WORDS.sub(_slash, text) if "/" in text else text


def _slash(match: re.Match[str]) -> str:
    parts = [part for part in match.groups() if part]
    if parts[0].lower() in ("and", "either") or (len(parts) == 2 and parts[0] in ("I", "A")):
        return " ".join(parts)
    if parts == ["AM", "FM"]:
        return "A M F M"
    if parts[0].lower() in _SLASH_OR:
        return " or ".join(parts)
    is_initials = all(part.isupper() and len(part) < 4 for part in parts)
    return (" " if is_initials else " slash ").join(parts)
