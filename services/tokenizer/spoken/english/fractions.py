"""Fractions: 1/2, 3/4, 1 1/2."""

from __future__ import annotations

import re

from services.tokenizer.spoken.english.numbers import cardinal, number, ordinal

FRACTION = r"(?:\d{1,3} )?\d{1,3}/\d{1,4}(?![/\d])"
_ANY = re.compile(rf"(?<![\w.,/:-])([-−])?({FRACTION})(?![\w%]|[.,]\d)(\s+of\s+(?:an?|the)\b)?")
_ORDINAL_ENDING = re.compile(r"(?<![\w.,/])(?:(\d{1,3})[ -])?(\d{1,3})/(\d{1,4})(?:st|nd|rds?|ths?)\b")
_RATED = re.compile(r"(?<![\w.,/$€£])(\d{1,3}\.\d{1,2})/(\d{1,4}(?:\.\d{1,2})?)(?![\w/%]|[.,]\d)")
_FIXED = {"24/7": "twenty four seven", "50/50": "fifty fifty", "9/11": "nine eleven", "20/20": "twenty twenty", "7/11": "seven eleven",
          "4/20": "four twenty", "24/5": "twenty four five", "80/20": "eighty twenty", "60/40": "sixty forty", "70/30": "seventy thirty",
          "90/10": "ninety ten", "7/7": "seven seven"}  # fmt: skip
_METER = re.compile(r"(?<![\w.,/])(\d{1,2})/([248]|16)(?=\stime\b)")  # of music
_SCALES = frozenset(("4", "5", "10", "20", "100"))
_OUT_OF = re.compile(
    r"(?:\b(?:score[ds]?|rated?|rating|got|gave|grade|graded|review|received|earned)\b[^.!?]{0,30}\s)$", re.I
)
_RATES = frozenset(
    "2 3 4 5 6 7 8 9 10 12 15 16 20 24 25 30 32 40 48 50 60 64 100 128 256 1000 11 13 14 1024 18 36 52 99".split()
)


def read_fractions(text: str) -> str:
    """`3/4` → three quarters; what is no common fraction, `17/23`, → seventeen over twenty three."""
    text = text.replace("24/7/365", "twenty four seven three sixty five") if "24/7/" in text else text
    text = _METER.sub(lambda m: f"{cardinal(m[1])} {cardinal(m[2])}", text)
    text = _RATED.sub(
        lambda m: f"{number(m[1])} {'out of' if m[2].removesuffix('.0') in _SCALES else 'over'} {number(m[2])}", text
    )
    text = _ORDINAL_ENDING.sub(lambda m: fraction_words(f"{m[1]} {m[2]}/{m[3]}" if m[1] else f"{m[2]}/{m[3]}"), text)
    return _ANY.sub(_read, text)


def _read(match: re.Match[str]) -> str:
    amount = match[2]
    if amount in _FIXED:
        return _FIXED[amount] + (match[3] or "")
    lead = "minus " if match[1] else ""
    over, under = amount.split(" ")[-1].split("/")
    if " " not in amount:
        if _OUT_OF.search(match.string[: match.start()]) or (
            under in ("10", "100", "5") and int(over) != 1 and int(over) <= int(under) and not match[3]
        ):
            return f"{lead}{cardinal(over)} out of {cardinal(under)}{match[3] or ''}"
        if amount == "1/2" and match.string.startswith("-", match.end()):
            return f"{lead}half"
        if amount == "1/2":
            after = match[3] or ""
            return f"{lead}one half{after}" if not after else f"{lead}half{after}"
    return lead + fraction_words(amount) + (match[3] or "")


def fraction_words(amount: str) -> str:
    """`1 1/2` → one and a half."""
    whole, _, part = amount.rpartition(" ")
    over, under = part.split("/")
    if under not in _RATES or not 1 <= int(over) <= min(99, int(under)) or (over[0] == "0" and over != "0"):
        words = f"{cardinal(over)} over {cardinal(under)}"
        return f"{cardinal(whole)} {words}" if whole else words
    names = {"2": ("half", "halves"), "4": ("quarter", "quarters"), "1": ("whole", "wholes")}
    one, several = names.get(under) or (ordinal(under), f"{ordinal(under)}s")
    is_one = int(over) == 1
    if whole:
        return f"{cardinal(whole)} and {('an' if one[0] == 'e' else 'a') if is_one else cardinal(over)} {one if is_one else several}"
    return f"{cardinal(over)} {one if is_one else several}"
