"""Feet and inches, and the degrees, minutes and seconds of a place: signs that look alike."""

from __future__ import annotations

import re

from services.tokenizer.spoken.english.adjectives import DETERMINER, is_adjective
from services.tokenizer.spoken.english.fractions import fraction_words
from services.tokenizer.spoken.english.numbers import is_one, number

_FEET_INCHES = re.compile(r"(?<![\w.])(\d{1,2})['’′]\s?(\d{1,2}(?:\.\d)?)(?:[\"”″]|''|(?=[\s.,!?;)]|$))")
_FEET = re.compile(r"(?<![\w.])(\d{1,3})['′](?=\s?(?:tall|long|wide|high|deep|x|by)\b)")
_FEET_ALONE = re.compile(r"(?<![\w.,'’′\"])(\d{1,3})['′](?=\s[a-z]{3,}\b|[,;]|\.?$)")
_FEET_BY = re.compile(r"(?<![\w.])(\d{1,3})['′]\s?[x×]\s?(\d{1,3})['′](?!\s?\d)")
_INCHES = re.compile(r"(?<![\w.'])(\d{1,3}(?:\.\d{1,2})?)[\"″](?!\w)")
_FRACTION_INCHES = re.compile(r"(?<![\w.,/])((?:\d{1,3} )?\d{1,2}/(?:2|4|8|16|32|64))\"")
_PRIMES = re.compile(r"(\d)(?:′′|″)")
_COORDINATE = re.compile(
    r"(\d(?:[\d.]*\d)?)°\s?(?:(\d{1,2}(?:\.\d+)?)['′]\s?)?(?:(\d{1,2}(?:\.\d+)?)[\"″]\s?)?([NSEW])\b"
)
_DIRECTIONS = {"N": "north", "S": "south", "E": "east", "W": "west"}


def read_inches(text: str) -> str:
    """`5'10"` → five feet ten inches; `40°26'N` → forty degrees twenty six minutes north."""
    text = _PRIMES.sub(r'\1"', text)
    if "°" in text:
        text = _COORDINATE.sub(_coordinate, text)
    if "'" in text or "′" in text:
        text = _FEET_BY.sub(lambda m: f"{number(m[1])} feet by {number(m[2])} feet", text)
        text = _FEET_INCHES.sub(_feet_inches, text)
        text = _FEET.sub(lambda m: f"{number(m[1])} feet", text)
        text = _FEET_ALONE.sub(_feet, text)
    if '"' in text:
        text = _FRACTION_INCHES.sub(
            lambda m: (
                fraction_words(m[1]) + (" inch" if is_adjective(m) else " inches" if " " in m[1] else " of an inch")
            ),
            text,
        )
        text = _INCHES.sub(_inches, text)
    return text


def _feet_inches(match: re.Match[str]) -> str:
    feet, inches = match[1], match[2]
    if float(inches) >= 12:
        return f"{number(feet)} minutes {number(inches)} seconds" if float(inches) < 60 else match[0]
    if DETERMINER.search(match.string[: match.start()]) and re.match(r",|\s[a-z]", match.string[match.end() :]):
        return f"{number(feet)} foot" + (f" {number(inches)}" if float(inches) else "")  # a six foot one man
    words = f"{number(feet)} {'foot' if feet == '1' else 'feet'}"
    return words + (f" {number(inches)} {'inch' if inches == '1' else 'inches'}" if float(inches) else "")


def _feet(match: re.Match[str]) -> str:
    """An apostrophe after a number is feet unless it closes a quotation."""
    if re.search(r"(?<!\w)['’]", match.string[: match.start()]):
        return match[0]
    return f"{number(match[1])} {'foot' if is_one(match[1]) or is_adjective(match) else 'feet'}"


def _inches(match: re.Match[str]) -> str:
    """A quotation mark after a number is inches unless it closes a quotation."""
    if match.string[: match.start()].count('"') % 2:
        return match[0]
    return f"{number(match[1])} {'inch' if is_one(match[1]) or is_adjective(match) else 'inches'}"


def _coordinate(match: re.Match[str]) -> str:
    words = f"{number(match[1])} {'degree' if is_one(match[1]) else 'degrees'}"
    words += f" {number(match[2].lstrip('0') or '0')} minutes" if match[2] else ""
    words += f" {number(match[3].lstrip('0') or '0')} seconds" if match[3] else ""
    return f"{words} {_DIRECTIONS[match[4]]}"
