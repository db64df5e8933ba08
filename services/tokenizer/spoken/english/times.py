"""Times of day, lengths of time and time zones."""

from __future__ import annotations

import re

from services.tokenizer.spoken.english.numbers import cardinal, digits
from services.tokenizer.spoken.english.sentences import begins_sentence

_HALF = r"(?:\s?(?:([AaPp])\.?\s?[Mm]\b(\.?)))"
_CLOCK = re.compile(
    rf"(?<![\w.:/$€£-])([01]?\d|2[0-4])[:.]([0-5]\d){_HALF}(?![\w:])"
    rf"|(?<![\w.:/$€£,-])([01]?\d|2[0-4]):([0-5]\d)(?::([0-5]\d)(?:\.(\d{{1,6}}))?)?(?![\w:]*\d)(Z\b|\s?[+-]\d\d:?\d\d\b)?"
    rf"|(?<![\w.:/$€£,-])(1[0-2]|0?[1-9]){_HALF}(?!\w)"
)
_HOUR_H = re.compile(r"(?<![\w.:/])([01]?\d|2[0-3])h([0-5]\d)?\b(?=\s?(?:[-–.,!?)]|$|on\b|and\b|to\b))(?!\w)")
_MILITARY = re.compile(r"(?<![\w.:/,$])(0\d|1\d|2[0-3])([0-5]\d)\s?(hours|hrs|h)\b")
_OFFSET = re.compile(r"\b(UTC|GMT)\s?([+\-−–])\s?(\d{1,2})(?::?([0-5]\d))?\b")
_MINUTES = re.compile(r"(?<![\w.:/$-])(\d{1,3}):([0-5]\d)(?=\s?(?:min\b|mins\b|minutes?\b|mile\b|per\b|/))")
_LAP = re.compile(r"(?<![\w.:/$-])(\d{1,2}):([0-5]\d)\.(\d{1,3})(?![\w:]|\.\d)")
_SHORT_HALF = re.compile(r"(?<=\d:[0-5]\d)([ap])\b(?!['’])")  # of airlines
_RANGED = r"\d{1,2}(?:[:.]\d\d)?"
_NAMED = re.compile(r"\b(noon|midnight|now|today|dawn|dusk)\s?[–—-]\s?(?=\d)", re.I)
_UNTIL = re.compile(r"(?<=[\dmM.])\s?[–—-]\s?(noon|midnight|now|today|present|dawn|dusk|late|close)\b")
_LASTED = re.compile(r"(?:\b(?:in|of|lasted|took|time|duration|runs|after|for|length)[:\s]+)$", re.I)
_OCLOCK = "o'clock"
_SPAN = re.compile(
    rf"(?<![\w.:/$€£,-])({_RANGED}\s?(?:[AaPp]\.?\s?[Mm]\.?)?)\s?[-–—]\s?({_RANGED}\s?[AaPp]\.?\s?[Mm]\b\.?|\d{{1,2}}:\d\d(?!:|\w))(?!\w)"
)


def read_times(text: str) -> str:
    """`5:30 p.m.` → five thirty P M; `17:00` → seventeen hundred; `9:05` → nine oh five."""
    text = _SHORT_HALF.sub(r"\1m", text)
    text = _NAMED.sub(r"\1 to ", _UNTIL.sub(r" to \1", text))
    text = _SPAN.sub(_span, text)
    text = _OFFSET.sub(_offset, text)
    text = _LAP.sub(lambda m: f"{cardinal(m[1])} {_minute(m[2]) or 'zero'} point {digits(m[3])}", text)
    text = _MINUTES.sub(lambda m: f"{cardinal(m[1])} {_minute(m[2]) or 'zero'}", text)
    text = _MILITARY.sub(lambda m: f"{_hour(m[1])} {_minute(m[2]) or 'hundred'} hours", text)
    text = _HOUR_H.sub(lambda m: f"{_hour(m[1])} {_minute(m[2]) if m[2] else ''}".strip() if m[2] else m[0], text)
    return _CLOCK.sub(_clock, text)


def _span(match: re.Match[str]) -> str:
    if ":" not in match[1] + match[2] and not re.search(r"[AaPp]\.?\s?[Mm]", match[2]):
        return match[0]
    return f"{match[1].strip()} to {match[2]}"


def _clock(match: re.Match[str]) -> str:
    if match[1]:
        return _half(f"{_hour(match[1])} {_minute(match[2])}".strip(), match[3], match[4], match)
    if match[10]:
        return _half(_hour(match[10]), match[11], match[12], match)
    hour, minute, second, zone = match[5], match[6], match[7], match[9]
    if second is not None:
        words = _with_seconds(match, hour, minute, second)
    elif minute == "00":
        value = int(hour)
        words = (
            "midnight" if hour in ("00", "24") else f"{cardinal(hour)} o'clock" if 1 <= value <= 12 and hour[0] != "0"
            else f"{_hour(hour)} hundred" if value else "zero hundred"
        )  # fmt: skip
    else:
        words = f"{_hour(hour)} {_minute(minute)}"
    if zone == "Z":
        words += " U T C"
    elif zone:
        words += f" {'plus' if '+' in zone else 'minus'} {cardinal(str(int(re.sub(r'[^0-9]', '', zone)[:2])))}"
    return words


def _with_seconds(match: re.Match[str], hour: str, minute: str, second: str) -> str:
    seconds = f"{cardinal(str(int(second)))} seconds"
    if _LASTED.search(match.string[: match.start()]):
        hours = f"{cardinal(str(int(hour)))} {'hour' if int(hour) == 1 else 'hours'}"
        return f"{hours} {cardinal(str(int(minute)))} minutes and {seconds}"
    return f"{_hour(hour)} {_minute(minute) or ('hundred' if hour[0] == '0' else _OCLOCK)} and {seconds}"


def _half(words: str, letter: str, point: str, match: re.Match[str]) -> str:
    after = match.string[match.end() :]
    stop = "." if point and begins_sentence(after) else ""
    return f"{words} {letter.upper()} M{stop}"


def _hour(text: str) -> str:
    return "zero" if int(text) == 0 else ("oh " if len(text) == 2 and text[0] == "0" else "") + cardinal(str(int(text)))


def _minute(text: str) -> str:
    value = int(text)
    return "" if value == 0 else f"oh {cardinal(str(value))}" if value < 10 else cardinal(text)


def _offset(match: re.Match[str]) -> str:
    words = f"{match[1]} {'plus' if match[2] == '+' else 'minus'} {cardinal(str(int(match[3])))}"
    return words + (f" {_minute(match[4])}" if match[4] else "")
