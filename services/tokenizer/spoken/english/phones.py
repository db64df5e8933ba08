"""Phone numbers and other digits that are read one by one: cards, codes, account numbers."""

from __future__ import annotations

import re

from services.tokenizer.spoken.english.numbers import digits

_SEP = r"[\s.\u2010-\u2013-]"
_EXTENSION = r"(?:,?\s*(?:ext\.?|extension|x)\s?(\d{1,6}))?"
_NORTH_AMERICAN = re.compile(
    rf"(?<![\w.,/+-])(\+?1{_SEP}?)?(?:\((\d{{3}})\){_SEP}?|(\d{{3}}){_SEP})(\d{{3}}){_SEP}(\d{{4}})(?![\w/]|[.,-]\d){_EXTENSION}"
)
_INTERNATIONAL = re.compile(rf"(?<![\w.])\+(\d{{1,3}})((?:{_SEP}?\(?\d{{1,5}}\)?){{2,6}})(?![\w]){_EXTENSION}")
_LOCAL = re.compile(rf"(?<![\w.,/$€£-])(\d{{3}})-(\d{{4}})(?![\w/]|[.,-]\d){_EXTENSION}")
_VANITY = re.compile(r"(?<![\w+])(1-)?([89]\d\d)-((?=[A-Z0-9-]*[A-Z])[A-Z0-9]+(?:-[A-Z0-9]+)*)\b")
_JOINED = re.compile(r"(?<![\w.])\+1(\d{3})(\d{3})(\d{4})(?!\d)")
_IBAN = re.compile(r"\b[A-Z]{2}\d\d(?: [A-Z\d]{4}){2,7}(?: [A-Z\d]{1,3})?\b")
_FREE = re.compile(r"(?<![\w+])(\+?1-)?(8\d\d)-(\d{3})-(\d{4})(?![\w-])")
_GROUPS = re.compile(r"(?<![\w.,/-])(?!\d{4}-\d\d-\d\d\b)\d{2,5}(?:[ -]\d{2,5}){2,5}(?![\w/]|[.,:-]\d)")
_HYPHENED = re.compile(r"(?<![\w.,/-])(?!\d{4}-\d\d-\d\d\b)\d{1,7}(?:-\d{1,7}){3,}(?:-?X)?(?![\w-])")
_TRUNK = re.compile(r"(?<![\w.,/+-])\(?(0\d{2,5})\)?((?:[ -]\d{2,8}){1,4})(?![\w/]|[.,-]\d)")
_EMERGENCY = re.compile(
    r"\b((?:[Cc]all|[Dd]ial|[Dd]ialed|[Rr]ing|[Pp]hone|[Tt]ext(?:\s\w+\sto)?)\s+)(\d{3}|\d{5,6})(?![\w.,:/%-]*\d|\s?[$€£%])"
)
_CODE = re.compile(
    r"\b((?:PIN|pin|[Cc]ode|passcode|password|OTP|[Zz]ip|ZIP|postcode|account|[Oo]rder|ticket|tracking|[Cc]onfirmation|reference|"
    r"invoice|case|serial|ID|id|card|ending|member(?:ship)?|policy|license|registration|routing|extension|ext\.?|(?<!\d\s)x)"
    r"(?:\s+(?:code|number|no\.?|ID|num))?(?:\s+(?:is|was|in|of|ends in))?[:#]?\s*(?:number\s)?)(\d{3}[ -]\d{3}|\d{3,14})(?![\w%]|[.,:/]\d|\s?[$€£%°])",
)
_EXTENSION_WORD = re.compile(r"^(?:ext\.?|x)\s*$")
_STATE_ZIP = re.compile(r"\b([A-Z]{2})\s+(\d{5})(?:-(\d{4}))?(?![\w.,]\d|\w)")
_ZIP = re.compile(r"(?<![\w.,/$€£-])(\d{5})-(\d{4})(?![\w-]|[.,]\d)")
_LONG = re.compile(r"(?<![\w.,:/$€£¥₹-])\d{7,}(?![\w%]|[.,:/]\d|\s?[$€£¥₹%°])")


def read_phones(text: str) -> str:
    """Digits one by one, the groups parted by commas."""
    text = _IBAN.sub(lambda m: ", ".join(_spelt(group) for group in m[0].split()), text)
    text = _JOINED.sub(r"+1 \1 \2 \3", text)
    text = _VANITY.sub(_vanity, text)
    text = _FREE.sub(_free, text)
    text = _NORTH_AMERICAN.sub(_north_american, text)
    if "+" in text:
        text = _INTERNATIONAL.sub(
            lambda m: (
                f"plus {digits(m[1] + ' ' + m[2])}{_extension(m[3])}" if len(re.sub(r"\D", "", m[0])) >= 7 else m[0]
            ),
            text,
        )
    text = _TRUNK.sub(lambda m: digits(m[0]) if len(re.sub(r"\D", "", m[0])) >= 9 else m[0], text)
    text = _LOCAL.sub(lambda m: f"{digits(m[1] + ' ' + m[2])}{_extension(m[3])}" if not _is_span(m) else m[0], text)
    text = _GROUPS.sub(
        lambda m: digits(m[0]) if len(re.sub(r"\D", "", m[0])) >= 9 and not _is_list(m[0]) else m[0], text
    )
    text = _HYPHENED.sub(lambda m: digits(m[0]) if len(re.sub(r"\D", "", m[0])) >= 9 else m[0], text)
    text = _EMERGENCY.sub(lambda m: m[1] + digits(m[2]), text)
    text = _STATE_ZIP.sub(lambda m: f"{m[1]} {digits(m[2])}" + (f", {digits(m[3])}" if m[3] else ""), text)
    text = _ZIP.sub(lambda m: digits(m[0]), text)
    text = _CODE.sub(lambda m: _EXTENSION_WORD.sub("extension ", m[1]) + _code(m), text)
    return _LONG.sub(lambda m: digits(m[0]), text)


def _spelt(code: str) -> str:
    return " ".join(digits(char) if char.isdigit() else char for char in code)


def _free(match: re.Match[str]) -> str:
    lead = "" if not match[1] else "plus one, " if match[1][0] == "+" else "one, "
    return f"{lead}{_hundred(match[2])}, {digits(match[3] + ' ' + match[4])}"


def _north_american(match: re.Match[str]) -> str:
    country, area = match[1], match[2] or match[3]
    lead = "" if not country else "plus one, " if country.startswith("+") else "one, "
    return f"{lead}{_hundred(area)}, {digits(f'{match[4]} {match[5]}')}{_extension(match[6])}"


def _extension(number: str | None) -> str:
    return f", extension {digits(number)}" if number else ""


def _vanity(match: re.Match[str]) -> str:
    letters = " ".join(digits(part) if part.isdigit() else part.capitalize() for part in match[3].split("-"))
    return f"{'one, ' if match[1] else ''}{_hundred(match[2])}, {letters}"


def _hundred(area: str) -> str:
    return "eight hundred" if area == "800" else "nine hundred" if area == "900" else digits(area)


def _code(match: re.Match[str]) -> str:
    number = match[2]
    is_plural_count = re.match(r"\s+(?:of\s|items?\b|people\b|dollars\b|more\b|units\b)", match.string[match.end() :])
    return (
        number
        if is_plural_count or ((len(number) == 3 and not number.startswith("0")) and match[1][0] in "orctm")
        else digits(number)
    )


def _is_span(match: re.Match[str]) -> bool:
    """pages 100-1200 is a range."""
    return bool(re.search(r"(?:pages?|pp\.|from|between|lines?|years?)\s+$", match.string[: match.start()]))


def _is_list(text: str) -> bool:
    """Numbers set apart by blanks alone, of differing lengths: 10 20 300."""
    groups = re.split(r"[ -]", text)
    return "-" not in text and len({len(group) for group in groups}) > 2
