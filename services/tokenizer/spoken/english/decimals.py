"""Numbers as other countries write them: 2,5 km, 1.000.000, 1'000."""

from __future__ import annotations

import re

_COMMA = re.compile(
    r"(?<![\w.,])(\d{1,3}),(\d{1,2})(?=\s?(?:%|°|(?:km|kg|cm|mm|m|l|ml|g|mg|lit(?:er|re)s?|met(?:er|re)s?|hours?|miles?|million|"
    r"billion|percent|degrees?)\b))"
)
_POINTS = re.compile(r"(?<![\w.,])\d{1,3}(?:\.\d{3}){2,}(?![\w.]|,\d)")
_APOSTROPHES = re.compile(r"(?<![\w.,'])\d{1,3}(?:'\d{3})+(?![\w'])")


def read_decimals(text: str) -> str:
    """In American signs; the digits are read later."""
    text = _COMMA.sub(r"\1.\2", text)
    text = _POINTS.sub(lambda m: m[0].replace(".", ","), text)
    return _APOSTROPHES.sub(lambda m: m[0].replace("'", ","), text)
