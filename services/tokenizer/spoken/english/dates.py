"""Calendar dates: ISO, American, with dots, with the month's name; decades, eras and fiscal years."""

from __future__ import annotations

import re

from services.tokenizer.spoken.english.numbers import cardinal, decade, digits, ordinal, year

MONTHS = tuple("January February March April May June July August September October November December".split())
_SHORT = {name[:3]: name for name in MONTHS} | {"Sept": "September"}
_DAYS = {"Mon": "Monday", "Tue": "Tuesday", "Tues": "Tuesday", "Wed": "Wednesday", "Thu": "Thursday", "Thur": "Thursday",
         "Thurs": "Thursday", "Fri": "Friday", "Sat": "Saturday", "Sun": "Sunday"}  # fmt: skip
_MONTH = r"(January|February|March|April|May|June|July|August|September|October|November|December|(?:Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept|Sep|Oct|Nov|Dec)\b\.?)"
_DAY = r"(0?[1-9]|[12]\d|3[01])(?:st|nd|rd|th)?"
_YEAR = r"((?:1\d|20|21)\d\d)"
_DASH = r"\s?[-–—]\s?"
_ISO = re.compile(
    r"(?<![\w./-])(\d{4})([-/.])(0?[1-9]|1[0-2])\2(0?[1-9]|[12]\d|3[01])(?:(?:T|(\s))(?=\d\d:\d\d)|(?![\w/-]|\.\d))"
)
_ISO_MONTH = re.compile(r"(?<![\w./$€£-])((?:19|20)\d\d)-(0[1-9]|1[0-2])(?![\w/-]|\.\d)")
_SLASHED = re.compile(r"(?<![\w./-])(\d{1,2})([/.-])(\d{1,2})\2(\d{4}|\d{2})(?![\w/-]|\.\d)")
_MONTH_OF_YEAR = re.compile(r"(?<![\w./,-])(0?[1-9]|1[0-2])/((?:19|20)\d\d)(?![\w/-]|\.\d)")
_MONTH_DAY = re.compile(
    r"(\b(?:on|by|until|till|from|before|after|since|due|dated?|starting|beginning|through|ships|arrives|ends|starts|begins|opens|closes|expires|launches)\s+)"
    r"(0?[1-9]|1[0-2])/(0?[1-9]|[12]\d|3[01])(?![\w/]|[.,-]\d|\s(?:of|cup|tea|table|inch|mile|the|an?)\b)"
)
_DAY_AND_DATE = re.compile(
    r"\b(Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday|Mon|Tues?|Wed|Thu(?:rs?)?|Fri|Sat|Sun)\b(\.?,?)\s(0?[1-9]|1[0-2])/(0?[1-9]|[12]\d|3[01])(?![\w/]|[.,-]\d|\s(?:of|cup|tea|table|inch|mile|the|an?)\b)"
)
_DAY_LIST = re.compile(
    r"(?<![\w/])(?:Mon|Tues?|Wed|Thu(?:rs?)?|Fri|Sat|Sun)(?:/(?:Mon|Tues?|Wed|Thu(?:rs?)?|Fri|Sat|Sun))+(?![\w/])"
)
_NAMED_FIRST = re.compile(
    rf"\b{_MONTH}\s+{_DAY}(?:{_DASH}{_DAY})?(?![\w:%/]|\.\d|,\d)(?:(,?\s+|,){_YEAR}\b(?!\s?[%$€£]))?"
)
_DAY_FIRST = re.compile(
    rf"(?<![\w./:,$€£-])([Tt]he\s+)?(?:{_DAY}{_DASH})?{_DAY}(\s+of)?[\s-]+{_MONTH}(?![a-z])(?:(,?[\s-]+){_YEAR}\b)?"
)
_MONTH_YEAR = re.compile(rf"\b{_MONTH}(?:,?\s+|-){_YEAR}\b(?!\s?[%$€£])")
_MONTH_SPAN = re.compile(rf"\b{_MONTH}{_DASH}{_MONTH}(?![a-z])")
_SHORT_MONTH = re.compile(r"\b(Jan|Feb|Apr|Aug|Sept|Sep|Oct|Nov|Dec)\b\.?(?=\s+(?:\d|of|[a-z])|$|[,;)])(?![a-z])")
_DAY_NAMES = "|".join(sorted(_DAYS, key=len, reverse=True))
_DAY_SPAN = re.compile(rf"\b({_DAY_NAMES})\b\.?({_DASH}|\s(?:to|through|thru|and|&)\s)({_DAY_NAMES})\b\.?(?!\w)")
_SHORT_DAY = re.compile(rf"\b({_DAY_NAMES})\b(?:\.,?|,)(?=\s+(?:\d|at\b|the\b|{'|'.join(MONTHS)}|{'|'.join(_SHORT)}))")
_DAY_AND_HOUR = re.compile(rf"(?<![Tt]he )\b({_DAY_NAMES})\b(?:(?=\s\d)|\.(?=\sat\b))")
_DECADE = re.compile(
    r"(?<![\w.,$€£#-])(?:(mid|early|late)[- ])?((?:1[1-9]|20)\d0|10[1-9]0)['’]?s\b(?!/)|(?<![\w.])['’]([1-9]0)['’]?s\b|(?:(?<![\w.,$€£/-])|(?<=mid-)|(?<=early-)|(?<=late-))([2-9]0)['’]?s\b(?!/)"
)
_DECADES = re.compile(r"(?<=\d0s)\s?[–—-]\s?(?=['’]?(?:\d\d)?\d0s\b)")
_AGES = re.compile(
    r"(?:\b(?:the|his|her|their|my|your|our|early|mid|late|roaring|swinging|and|or|of|in|from)[\s-]+)$", re.I
)
_APOSTROPHE_YEAR = re.compile(r"((?<![\w'])|(?<=[-–]))['’](\d\d)\b(?!['’]?s|['’])")
_FISCAL = re.compile(r"\b(FY|CY|AY)[ ']?(\d{4}|\d{2})\b")
_QUARTER = re.compile(r"\b([QH])([1-4])(?:(?:\s?[/'’-]\s?|\s+)((?:19|20)\d\d|(?<=['’/-])\d\d))?\b")
_ERA = re.compile(
    r"(?<![\w.,])(\d{1,3}(?:,\d{3})+|\d{1,4})\s?(BCE|BC|CE|AD|B\.C\.E\.|B\.C\.|A\.D\.|C\.E\.)(?![A-Za-z])"
)
_ERA_FIRST = re.compile(r"\b(AD|A\.D\.)\s(\d{1,4})(?:\s?[–-]\s?(\d{1,4}))?\b")
_ISO_BASIC = re.compile(r"(?<!\w)((?:19|20)\d\d)(0[1-9]|1[0-2])([0-3]\d)T([0-2]\d)([0-5]\d)([0-5]\d)(?=Z?\b)")
_ISO_WEEK = re.compile(r"(?<![\w.-])((?:19|20)\d\d)-W([0-5]\d)\b")
_CENTURY = re.compile(r"(?<=\d(?:st|nd|rd|th) )c\.(?=\s|$)")


def read_dates(text: str) -> str:
    """`2025-03-14` → March fourteenth, twenty twenty five."""
    text = _ISO_BASIC.sub(r"\1-\2-\3T\4:\5:\6", text)
    text = _ISO.sub(lambda m: _date(m[3], m[4], m[1]) + (" at " if m[0][-1] in "T " else ""), text)
    text = _ISO_WEEK.sub(lambda m: f"{year(m[1])}, week {cardinal(str(int(m[2])))}", text)
    text = _CENTURY.sub("century", text)
    text = _ISO_MONTH.sub(lambda m: f"{MONTHS[int(m[2]) - 1]} {year(m[1])}", text)
    text = _MONTH_OF_YEAR.sub(lambda m: f"{MONTHS[int(m[1]) - 1]} {year(m[2])}", text)
    text = _SLASHED.sub(_slashed, text)
    text = _DAY_AND_DATE.sub(lambda m: f"{_DAYS.get(m[1], m[1])}, {_date(m[3], m[4])}", text)
    text = _MONTH_DAY.sub(lambda m: m[1] + _date(m[2], m[3]), text)
    text = _NAMED_FIRST.sub(_named_first, text)
    text = _DAY_FIRST.sub(_day_first, text)
    text = _MONTH_YEAR.sub(lambda m: f"{_month(m[1])} {year(m[2])}", text)
    text = _MONTH_SPAN.sub(lambda m: f"{_month(m[1])} to {_month(m[2])}", text)
    text = _SHORT_MONTH.sub(lambda m: _month(m[1]), text)
    text = read_days(text)
    text = _DECADES.sub(" to ", text)
    text = _DECADE.sub(_decade, text)
    text = _FISCAL.sub(lambda m: f"{m[1]} {_short_year(m[2])}", text)
    text = _QUARTER.sub(lambda m: f"{m[1]} {cardinal(m[2])}" + (f" {_short_year(m[3])}" if m[3] else ""), text)
    text = _ERA.sub(lambda m: f"{_era_year(m[1])} {' '.join(m[2].replace('.', ''))}", text)
    text = _ERA_FIRST.sub(lambda m: f"A D {_era_year(m[2])}" + (f" to {_era_year(m[3])}" if m[3] else ""), text)
    return _APOSTROPHE_YEAR.sub(lambda m: f"{m[1]}{_short_year(m[2])}", text)


def read_days(text: str) -> str:
    """Mon–Fri, Tue. 5 March."""
    text = _DAY_LIST.sub(lambda m: ", ".join(_DAYS[name] for name in m[0].split("/")), text)
    text = _DAY_SPAN.sub(
        lambda m: f"{_DAYS[m[1]]} {'and' if m[2].strip() in ('and', '&') else 'to'} {_DAYS[m[3]]}", text
    )
    text = _DAY_AND_HOUR.sub(lambda m: _DAYS[m[1]], text)
    return _SHORT_DAY.sub(lambda m: f"{_DAYS[m[1]]},", text)


def _month(name: str) -> str:
    bare = name.rstrip(".")
    return bare if bare in MONTHS else _SHORT[bare]


def _date(month: str, day: str, in_year: str | None = None) -> str:
    words = f"{MONTHS[int(month) - 1]} {ordinal(str(int(day)))}"
    return words + (f", {_short_year(in_year)}" if in_year else "")


def _short_year(text: str) -> str:
    if len(text) == 4:
        return year(text)
    return (
        f"oh {digits(text[1])}"
        if text[0] == "0" and text != "00"
        else "two thousand"
        if text == "00"
        else cardinal(text)
    )


def _slashed(match: re.Match[str]) -> str:
    """American order, unless that is no date: 14/03/1992, 14.03.1992. Two digits of a year are of 1970 to 2069."""
    first, sign, second, in_year = int(match[1]), match[2], int(match[3]), match[4]
    if len(in_year) == 2 and sign != "/":
        return match[0]
    in_year = in_year if len(in_year) == 4 else ("19" if in_year >= "70" else "20") + in_year
    if not 1000 <= int(in_year) <= 2999:
        return match[0]
    month, day = (second, first) if first > 12 or (sign == "." and second <= 12) else (first, second)
    if not (1 <= month <= 12 and 1 <= day <= 31):
        return match[0]
    return _date(str(month), str(day), in_year)


def _named_first(match: re.Match[str]) -> str:
    month, day, to_day, in_year = match[1], match[2], match[3], match[5]
    words = f"{_month(month)} {ordinal(day)}"
    words += f" to {ordinal(to_day)}" if to_day else ""
    return words + (f", {year(in_year)}" if in_year else "")


def _day_first(match: re.Match[str]) -> str:
    from_day, day, month, in_year = match[2], match[3], match[5], match[7]
    days = f"{ordinal(from_day)} to {ordinal(day)}" if from_day else ordinal(day)
    words = f"{match[1] or 'the '}{days} of {_month(month)}"
    return words + (f", {year(in_year)}" if in_year else "")


def _decade(match: re.Match[str]) -> str:
    if match[4] and match[4] < "70" and not _AGES.search(match.string[: match.start()]):
        return match[0]  # seconds
    return (f"{match[1]} " if match[1] else "") + decade(match[2] or match[3] or match[4])


def _era_year(text: str) -> str:
    return year(text) if len(text) == 4 and text[1] != "0" else cardinal(text.lstrip("0") or "0")
