"""Quantities with a unit: percent, temperature, length, weight, volume, data, speed."""

from __future__ import annotations

import re

from services.tokenizer.spoken.english.adjectives import is_adjective
from services.tokenizer.spoken.english.fractions import FRACTION, fraction_words
from services.tokenizer.spoken.english.inches import read_inches
from services.tokenizer.spoken.english.numbers import MAGNITUDE_WORDS, NUMBER, is_one, number, scientific
from services.tokenizer.spoken.english.unit_names import UNITS

_ALTERNATIVES = "|".join(re.escape(unit) for unit in sorted(UNITS, key=len, reverse=True))
_QUANTITY = re.compile(
    rf"(?<![\w.,])(?:([-−+~≈±<>≤≥])\s?)?({FRACTION}|{NUMBER})(?:(\s|-)({MAGNITUDE_WORDS})\b)?([\s-]?)({_ALTERNATIVES})(?:\s?/\s?(day|week|month|year|yr|hour|hr|person|night|serving|dose))?(?![\w^]|/[A-Za-z])"
)
_PERCENT_FIRST = re.compile(r"(?<![\w%])%\s?(\d+(?:\.\d+)?)(?![\w%]|\.\d)")
_COMPOUND = re.compile(rf"(?<![\w.,/])({NUMBER})\s?([A-Za-zμΩ]{{1,3}})/([A-Za-zμΩ]{{1,4}}(?:\^[23])?)(?![\w/^])")
_LONE = re.compile(
    r"(?<![\w.'’-])(km|kg|cm|lbs?|hrs?|yrs?|wks?|ft|tbsp|tsp|kmh|mph)(?![\w'’/^-])"
)  # no words, so they may stand for themselves: a few km
_PER_SEVERAL = re.compile(r"(?<=\d)(\s?(?:l|L|kWh|g|kg|mg|MB|GB))/(?=10*\s?[A-Za-z])")
_DURATION = re.compile(r"(?<![\w.,:/])(?:\d{1,3}\s?[dhm]\s?)(?:\d{1,2}\s?[hms]\b\s?)*\d{1,2}\s?[hms]\b")
_BY = re.compile(r"(?<=meters|inches|pixels|.yards|..feet) [x×] (?=\w)")
_SCIENTIFIC = re.compile(
    rf"(?<![\w.,])([-−])?(\d+(?:\.\d+)?)[eE]([-+−]?\d{{1,3}})(?!\w)(?:\s?({_ALTERNATIVES})(?![\w/^]))?"
)
_SUBSTANCE = re.compile(r"(?<=[A-Z]\d|.[A-Z])/(km|mi|kg|kWh|MWh|L|l|m\^2|m\^3)(?!\w)")  # of what a unit holds: CO2/km
_DEGREES = re.compile(r"\bdegrees ([CF])\b(?!\w)")
_SIGN_WORDS = {"-": "minus", "−": "minus", "+": "plus", "~": "about", "≈": "about", "±": "plus or minus", "<": "less than",
               ">": "more than", "≤": "at most", "≥": "at least"}  # fmt: skip
_PROPER = re.compile(r"\d+/(?:[2-9]|1\d|32|64|100)")
_OFTEN_WORDS = frozenset("st au us d A K J N as W mo gr ac bar".split())  # after a blank
_UNITS_AT_END = frozenset("K W A bar".split())
_RATE = {"yr": "year", "hr": "hour"}
_BARE_DEGREE = re.compile(r"°\s?([CF])\b")
_NAMED_UNIT = re.compile(
    r"(?<![\w/])(km/h|mi/h|m/s|MB/s|GB/s|mg/dL|kWh)(?![\w/^])|(?<=\bper )(m\^2|m\^3|km\^2|cm\^2|ft\^2|km/h|kWh|kg|km|mL|ml|GB|MB|sq ft)(?!\w)|(?<=\bin )(km/h|m/s|kWh|GHz|MHz|mph|°C|°F)(?!\w)"
)
_SEVERAL = re.compile(
    r"(?:\b(?:two|three|four|five|six|seven|eight|nine|ten|numbers?|the|these|those|all|my|your|and|or|of|with)\s+)$",
    re.I,
)


def read_units(text: str) -> str:
    """`60 km/h` → sixty kilometers per hour; `-5°C` → minus five degrees Celsius."""
    if "%" in text:
        text = _PERCENT_FIRST.sub(r"\1%", text)
    text = read_inches(text)
    text = _DURATION.sub(_duration, text)
    if "/" in text:
        text = _PER_SEVERAL.sub(r"\1 per ", text)
        text = _COMPOUND.sub(_compound, text)
        text = _SUBSTANCE.sub(lambda m: f" per {UNITS[m[1]][0]}", text)
    text = _SCIENTIFIC.sub(_scientific, text)
    text = _QUANTITY.sub(_quantity, text)
    text = _BY.sub(" by ", text)
    text = _DEGREES.sub(lambda m: f"degrees {'Celsius' if m[1] == 'C' else 'Fahrenheit'}", text)
    return read_named_units(text)


def _scientific(match: re.Match[str]) -> str:
    words, unit = scientific(match[1], match[2], match[3]), match[4]
    if unit is None:
        return words
    is_word = _is_no_unit(unit, " ", match.string[match.end() :])
    return f"{words} {unit if is_word else UNITS[unit][1]}"


def _duration(match: re.Match[str]) -> str:
    parts = re.findall(r"(\d+)\s?([dhms])", match[0])
    if [unit for _, unit in parts] != sorted((unit for _, unit in parts), key="dhms".index):
        return match[0]
    names = {"d": "day", "h": "hour", "m": "minute", "s": "second"}
    return " ".join(f"{number(str(int(amount)))} {names[unit]}{'' if amount == '1' else 's'}" for amount, unit in parts)


def read_named_units(text: str) -> str:
    """Units without a number: speed in km/h, °C."""
    text = _LONE.sub(_lone, text)
    text = _NAMED_UNIT.sub(lambda m: UNITS[m[1] or m[3]][1] if not m[2] else UNITS[m[2]][0], text)
    return (
        _BARE_DEGREE.sub(lambda m: "degrees Celsius" if m[1] == "C" else "degrees Fahrenheit", text)
        if "°" in text
        else text
    )


def _lone(match: re.Match[str]) -> str:
    is_single = re.search(r"\b(?:an?|one|per|each|every|this|that|last|next)\s$", match.string[: match.start()], re.I)
    return UNITS[match[1]][0 if is_single or match[1] in ("hr", "yr", "wk") else 1]


def _compound(match: re.Match[str]) -> str:
    """100 W/m^2 → one hundred watts per square meter; what has a name of its own is left."""
    amount, over, under = match.groups()
    if f"{over}/{under}" in UNITS or over not in UNITS or under not in UNITS:
        return match[0]
    return f"{number(amount)} {UNITS[over][0 if is_one(amount) else 1]} per {UNITS[under][0]}"


def _quantity(match: re.Match[str]) -> str:
    sign, amount, _blank, scale, gap, unit, per = match.groups()
    after = match.string[match.end() :]
    if gap != "" and _is_no_unit(unit, gap, after):
        return match[0]
    if gap == "" and not _fits_joined(unit, amount, match.string[: match.start()], after):
        return match[0]
    one, several = UNITS[unit]
    words = fraction_words(amount) if "/" in amount else number(amount)
    lead = f"{_SIGN_WORDS[sign]} " if sign else ""
    adjective = gap == "-" or re.match(r"-[a-z]", after) or is_adjective(match)
    singular = not scale and (is_one(amount) or adjective)
    name = one if singular and unit not in ("%",) else several
    if _PROPER.fullmatch(amount) and int(amount.split("/")[0]) < int(amount.split("/")[1]) and unit != "%":
        name = f"of {_article(one)} {one}"
        if amount in ("1/2",):
            words, name = "half", f"{_article(one)} {one}"
    words = (
        f"{lead}{words}" + (f" {scale}" if scale else "") + f" {name}" + (f" per {_RATE.get(per, per)}" if per else "")
    )
    stop = "." if unit.endswith(".") and (not after.strip() or re.match(r"\s+[A-Z]", after)) else ""
    return words + stop


def _article(word: str) -> str:
    return "an" if word[0] in "aeio" or word.startswith("hour") else "a"


def _fits_joined(unit: str, amount: str, before: str, after: str) -> bool:
    """5m is meters, 90s a decade (read before), 4K a resolution, 747s several planes."""
    if unit in ("K", "st", "pt", "d", "A", "au", "us"):
        return False
    return unit not in ("ac", "s") or (
        unit == "s"
        and len(amount.partition(".")[0]) <= 3
        and not after.startswith(" of")
        and not _SEVERAL.search(before)
    )


def _is_no_unit(unit: str, gap: str, after: str) -> bool:
    """After a blank some units are more often words or letters: 5 in the morning, 3 A, 2 d."""
    if unit in ("in", "in."):
        return bool(
            re.match(
                r"\s+(?:the|a|an|my|our|your|his|her|their|its|this|that|these|those|all|every|each|[A-Z\d]|any|one|two|some|total|order|fact)",
                after,
            )
        ) or not re.match(
            r"\s*(?:[.,;:!?)]|$|(?:long|wide|tall|high|deep|thick|x|by|of|and|or|diameter|across|screen|display|pipe)\b|=)",
            after,
        )
    if unit in _OFTEN_WORDS:
        return gap == " " and not (unit in _UNITS_AT_END and re.match(r"\s*(?:[.,;:!?)]|$)", after))
    if gap == "-" and unit in ("m", "g", "L", "l", "V", "W"):
        return re.match(r"\s[a-z]{3,}", after) is None  # a 100-m dash
    return gap == "-" and len(unit) == 1 and unit not in "%°th"
