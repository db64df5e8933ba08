"""Words that mix letters and digits: COVID-19, B2B, 5G, MP3, iPhone15, ABC-123, 10x."""

from __future__ import annotations

import re

from services.tokenizer.spoken.english.initials import spell_mixed
from services.tokenizer.spoken.english.numbers import MAGNITUDES, NUMBER, cardinal, digits, number, pairs, year

_PLANE = re.compile(r"\b(Boeing|Airbus)\s(\d)([1-9]\d)(?![\w]|\.\d)")
_MODEL = re.compile(r"\b(RTX|GTX|RX|RFC)[\s-](\d\d)(\d\d)(?![\w]|[.,]\d)")
_TIMES = re.compile(rf"(?<![\w.,])({NUMBER})[x×](?:/(day|week|month|year)\b)?(?![\w]|\s?[-+=*/^−÷<>])")
_BY = re.compile(
    r"(?<![\w.,/])(\d+(?:\.\d+)?)\s?[x×]\s?(\d+(?:\.\d+)?)(?:\s?[x×]\s?(\d+(?:\.\d+)?))?(?![\w]*\d)(?!\s?[=^]|\.\d)"
)
_PACK = re.compile(
    r"(?<![\w.,/])(\d{1,3})\s?[x×]\s?(?=\d+(?:\.\d+)?\s?(?:mg|mcg|g|kg|ml|mL|cl|l|L|oz|lbs?|MB|GB|TB)\b)"
)
_WIRELESS = re.compile(r"(?<![\w.,])802\.11(?=[a-z]{0,2}\b)")
_MODEL_S = re.compile(r"\b(iPhone|Galaxy|Pixel|Redmi|Xbox|Leica)\s(\d{1,2})s\b")
_RECORD = re.compile(r"(?<![\w-])(\d{1,3})(W)-(\d{1,3})(L|D)(?:-(\d{1,3})([LDT]))?(?![\w-])")  # games won, lost
_FLIGHT = re.compile(r"\b([Ff]light\s(?:[A-Z][a-z]+\s)?)(?:([A-Z]{1,3})\s?)?(\d\d)(\d\d)\b(?![.,]\d)")
_BY_SEVERAL = re.compile(r"(?<![\w.,/])(\d{1,2})[x×](\d{1,2})s\b")
_SCALED = re.compile(rf"(?<![\w.,-])({NUMBER})(k|K|M|mn|B|bn|tn)(?=\s+[a-z]|[.,!?;:)]|\+|$|\s?/|-)(?![.,]\d)")
_RUN = re.compile(r"(?<![\w.,])(\d{1,2})[kK](?=\s(?:run|race|training|walk|runner|course)\b)")
_ROOM = re.compile(
    r"(?:\b(?:apartment|apt|unit|room|suite|seat|gate|row|flat|block|building|section|platform|exhibit|form|class|type|grade|table|figure|"
    r"page|question|part|step|level|terminal|bus|group|tier)s?\.?\s+(?:\w+\s+(?:and|or)\s+)?)$",
    re.I,
)
_THOUSAND = re.compile(r"(?<![\w.,-])(\d+)k\b")
_KARAT = re.compile(r"(?<![\w.,])(\d\d)K(?=\s(?:gold|yellow|white|rose)\b)")
_DECIMAL_NAME = re.compile(r"(?<![\w.,])([A-Za-z]{1,6})-?(\d{1,3}\.\d{1,2})(?![\w]|\.\d)")
_PLUS = re.compile(r"(?:(?<=[\da-z])|(?<=[A-Z]{3}))\+(?=\s|[.,;:!?)]|$)")
_MIXED = re.compile(r"(?<![\w.,'’])(?=[\w-]*\d)(?=[\w-]*[A-Za-z])[A-Za-z0-9]+(?:-[A-Za-z0-9]+)*(?:'s)?(?![\w])")
_PIECES = re.compile(r"[A-Za-z]+|\d+")
_PLURAL = re.compile(r"(?<![\w.,$€£])(\d{1,4})s\b")
_TENS = {"10": "tens", "100": "hundreds", "1000": "thousands"}
_HEX = re.compile(r"(?<![\w])(?:0x([0-9A-Fa-f]{1,16})|#(?=[0-9A-Fa-f]*\d)([0-9A-Fa-f]{6}|[0-9A-Fa-f]{3}))(?![\w])")
_COMPOUND = re.compile(r"(?<![\w.,-])(\d{1,3}(?:,\d{3})+|\d+(?:\.\d+)?)-(?=[A-Za-z]{2,})")
_UUID = re.compile(r"(?<![\w-])[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}(?![\w-])")


def read_sizes(text: str) -> str:
    """`1920x1080` → 1920 by 1080; the digits are read later, with their unit."""
    text = _RECORD.sub(_record, text)
    text = _FLIGHT.sub(lambda m: " ".join([m[1].rstrip(), *(m[2] or ""), pairs(m[3], m[4])]), text)
    text = _WIRELESS.sub("eight oh two dot eleven ", _MODEL_S.sub(r"\1 \2 S", text))
    text = _BY_SEVERAL.sub(lambda m: f"{cardinal(m[1])} by {_plural(m[2])}", text)
    text = _PACK.sub(r"\1 times ", text)
    return _BY.sub(lambda m: " by ".join(part for part in m.groups() if part) if " ×" not in m[0] else m[0], text)


def read_codes(text: str) -> str:
    """`COVID-19` → COVID nineteen; `B2B` → B two B; `10x` → ten times."""
    text = _UUID.sub(lambda m: ", ".join(_characters(part) for part in m[0].split("-")), text)
    text = _HEX.sub(lambda m: ("hex " if m[1] else "hash ") + _characters(m[1] or m[2]), text)
    text = _DECIMAL_NAME.sub(lambda m: f"{_mixed(m[1])} {number(m[2])}", text)
    text = _PLANE.sub(lambda m: f"{m[1]} {cardinal(m[2])} {cardinal(m[3])}", text)
    text = _MODEL.sub(lambda m: f"{m[1]} {pairs(m[2], m[3])}", text)
    text = _TIMES.sub(lambda m: f"{number(m[1])} times" + (f" per {m[2]}" if m[2] else ""), text)
    text = _KARAT.sub(lambda m: f"{cardinal(m[1])} karat", text)
    text = _RUN.sub(lambda m: f"{number(m[1])} K", text)
    text = _SCALED.sub(_scaled, text)
    text = _THOUSAND.sub(lambda m: f"{cardinal(m[1])} thousand", text)
    text = _COMPOUND.sub(_compound, text)
    text = _PLURAL.sub(lambda m: f"{_plural(m[1])}", text)
    text = _PLUS.sub(" plus", text)
    return _MIXED.sub(lambda m: _mixed(m[0]), text)


def _record(match: re.Match[str]) -> str:
    return " ".join(cardinal(part) if part.isdigit() else part for part in match.groups() if part)


def _scaled(match: re.Match[str]) -> str:
    if (match[2] == "K" and len(match[1]) == 1) or (len(match[2]) == 1 and _ROOM.search(match.string[: match.start()])):
        return match[0]
    return f"{number(match[1])} {MAGNITUDES[match[2]]}"


def _compound(match: re.Match[str]) -> str:
    """24-hour → twenty-four-hour; longer numbers are not hyphenated."""
    words = _four(match[1]) if len(match[1]) == 4 and match[1].isdigit() else number(match[1])
    return words.replace(" ", "-") + "-" if words.count(" ") < 2 else words + " "


def _four(text: str) -> str:
    return year(text) if "1010" <= text <= "2099" else cardinal(text)


def _plural(text: str) -> str:
    if text in _TENS:
        return _TENS[text]
    words = _four(text) if len(text) == 4 else cardinal(text)
    return words[:-1] + "ies" if words.endswith("y") else words + ("es" if words.endswith(("x", "s")) else "s")


def _characters(code: str) -> str:
    return " ".join(digits(char) if char.isdigit() else char.upper() for char in code)


def _mixed(word: str) -> str:
    suffix = "'s" if word.endswith("'s") else ""
    bare = word.removesuffix("'s")
    out: list[str] = []
    pieces = _PIECES.findall(bare)
    is_code = len(pieces) > 3 or (len(pieces) > 2 and bare.isupper() and len(bare) > 4)
    for piece in pieces:
        if piece.isdigit():
            out.append(_number(piece, is_code))
        elif len(piece) == 1:
            out.append(piece.upper() if bare.isupper() or len(pieces) > 2 else piece)
        elif is_code and (piece.isupper() or len(piece) == 2):
            out.append(" ".join(piece.upper()))
        elif piece.islower() and len(piece) <= 3 and not set(piece) & set("aeiouy"):
            out.append(" ".join(piece.upper()))
        else:
            out.append(_SAID.get(piece.lower()) or spell_mixed(piece))
    return " ".join(out) + suffix


_SAID = {"mp": "M P", "pc": "P C", "gpt": "G P T", "ps": "P S", "mk": "mark", "covid": "COVID", "sha": "S H A", "utf": "U T F", "usb": "U S B",
         "http": "H T T P", "ipv": "I P V", "id": "I D", "ii": "two", "iii": "three"}  # fmt: skip


def _number(text: str, is_code: bool) -> str:
    if text[0] != "0" and text.endswith("000"):
        return cardinal(text)
    if text[0] == "0" or len(text) > 4 or (is_code and len(text) > 2):
        return digits(text)
    if len(text) == 4:
        return _four(text)
    if len(text) == 3 and text[1] != "0" and not text.endswith("00"):
        return f"{cardinal(text[0])} {cardinal(text[1:])}"
    return cardinal(text)
