"""Spans and ratios: 10–20, 1914–1918, 3-1, 16:9."""

from __future__ import annotations

import re

_SIGN = r"[$€£¥₹]"
_SUFFIX = r"(?:\s?(?:%|°[CF]?|[AaPp]\.?[Mm]\.?|[kKMB])(?![\w]))"
_NUMBER = r"(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?)"
_CHAIN = re.compile(r"(?<![\w.,/$€£-])\d{1,2}(?:-\d{1,2}){2,}(?![\w/-]|\.\d)")
_SPAN = re.compile(
    rf"(?<![\w.,/:$€£¥₹–—−-])({_SIGN})?({_NUMBER})({_SUFFIX})?(?:\s?[–—]\s?|-)({_SIGN})?({_NUMBER})(?![\d,]*\d)(?!\.\d+\.)(?!\s?[-–]\s?\d)(?!\s?=)"
)
_SPACED = re.compile(
    rf"(?<![\w.,/:])(\b(?:from|between|ages?|pages?|pp\.|chapters?|lines?|years?|weeks?|days?)\s+)({_NUMBER})\s-\s({_NUMBER})"
)
_NEGATIVE_SPAN = re.compile(rf"(?<![\w.,/:])([-−]{_NUMBER})({_SUFFIX})?\s?[–—]\s?([-−]?{_NUMBER})")
_RATIO = re.compile(r"(?<![\w.,:/])(\d{1,4}):(\d{1,4}(?:\.\d)?)(?::(\d{1,4}))?(?![\w:]|\.\d)")
_VERSES = re.compile(r"(?<=[a-z] )(\d{1,3}):(\d{1,3})[-–](\d{1,3})(?![\d:])(?!\s?[ap]\.?m)", re.I)  # Matthew 5:3-12
_STANDARD = re.compile(r"(?<![\w.,:/])(\d{4,6}(?:-\d{1,2})?):((?:19|20)\d\d)(?![\w:])")
_LETTERS = re.compile(r"(?<![\w-])([A-Z])\s?[–—-]\s?([A-Z])(?![\w-])")
_ORDINALS = re.compile(r"\b(\d{1,3}(?:st|nd|rd|th))\s?[–—-]\s?(\d{1,3}(?:st|nd|rd|th))\b")
_FRACTIONS = re.compile(r"(?<![\w.,/])(\d{1,2}/\d{1,2})\s?[–—-]\s?(\d{1,2}/\d{1,2})(?![\w/])")
_TILDE = re.compile(r"(?<=\d)[~〜～∼](?=\d)")
_MODEL = re.compile(r"\b(?:boeing|airbus|embraer|model|type|flight|form|part)\s$")
_HALVES = re.compile(r"(?<![\w.,/$€£-])50-50(?![\w%-]|[.,]\d)")
_GRADES = re.compile(r"\b(K|pre-K)\s?[-–]\s?(\d{1,2})\b")


def read_ranges(text: str) -> str:
    """Digits stay digits, for what follows (%, kg) to be read with them: 10–20% → 10 to 20%."""
    text = _HALVES.sub("50/50", text)
    text = _GRADES.sub(r"\1 through \2", text)
    text = _ORDINALS.sub(r"\1 to \2", text)
    text = _FRACTIONS.sub(r"\1 to \2", text)
    text = _TILDE.sub(" to ", text)
    text = _CHAIN.sub(lambda m: m[0].replace("-", ", "), text)
    text = _NEGATIVE_SPAN.sub(r"\1\2 to \3", text)
    text = _SPACED.sub(r"\1\2 to \3", text)
    text = _SPAN.sub(_span, text)
    if "–" in text or "—" in text:
        text = _LETTERS.sub(lambda m: f"{m[1]} to {m[2]}" if "-" not in m[0] else m[0], text)
    if "→" in text:
        text = text.replace("→", " to ")
    return text


def read_ratios(text: str) -> str:
    """After times of day have been read: 16:9, 3:1. A standard has its year behind a colon: ISO 9001:2015."""
    text = _STANDARD.sub(r"\1, \2", _VERSES.sub(r"\1 \2 to \3", text))
    return _RATIO.sub(lambda m: f"{m[1]} to {m[2]}" + (f" to {m[3]}" if m[3] else ""), text)


def _span(match: re.Match[str]) -> str:
    sign, low, suffix, sign_again, high = match.groups()
    before = match.string[: match.start()].lower()
    if "-" in match[0] and _MODEL.search(before):
        return f"{low} {high}"
    if low.startswith("0") and len(low) > 1 and "." not in low:
        return match[0]
    is_falling = "-" in match[0] and len(low) == len(high) == 3 and (low + high).isdigit() and low > high
    joint = " " if is_falling else " and " if before.endswith("between ") else " to "
    # One sign for both stands before the second: five to ten dollars.
    lead = "" if sign and not sign_again else sign or ""
    return f"{lead}{low}{suffix or ''}{joint}{sign_again or (sign if not lead else '') or ''}{high}"
