"""Emoji, pictures and emoticons, which have no words."""

from __future__ import annotations

import re
import unicodedata

_SHORTCODE = re.compile(r"(?<![\w:]):(?:[a-z][a-z0-9_+-]{1,40}|[+-]1|100):(?![\w:])")
_EMOTICON = re.compile(
    r"(?<![^\s.,!?\"')])(?:"
    r"(?:[:;=]|8-)[-'^o]?[)\](\[DPpOo3/\\|*$@]+|[xX]D|<3+|</3|[:;]'[-]?[()]|-_+-|[oO]_[oO]|>[:;][()]|T_T|;_;|\\o/"
    r"|¯\\?\\?_?\(ツ\)_?/¯|\([╯ノ][^()\n]{0,12}[)）][^\s]{0,8}"
    r")(?=[\s.,!?\"']|$)"
)
_FACE = re.compile(r"\^_*\^|¯\\?_?\(ツ\)_?/¯")
_SPOKEN_SIGNS = frozenset("°©®™№℃℉→")  # "other symbols" by category, which a language reads


def strip_emoji(text: str) -> str:
    """The text with a blank for each picture."""
    text = _FACE.sub(" ", _EMOTICON.sub(" ", text))
    if ":" in text:
        text = _SHORTCODE.sub(" ", text)
    return text if text.isascii() else "".join(" " if _is_picture(char) else char for char in text)


def _is_picture(char: str) -> bool:
    if char.isascii() or char in _SPOKEN_SIGNS:
        return False
    return unicodedata.category(char) == "So" or "\U0001f3fb" <= char <= "\U0001f3ff"
