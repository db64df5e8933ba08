"""Amounts of money, whichever side the sign stands on."""

from __future__ import annotations

import re

from services.tokenizer.spoken.english.numbers import MAGNITUDE_WORDS, MAGNITUDES, NUMBER, cardinal, is_one, number

# sign or code: (one, several, one hundredth, several hundredths)
_DOLLAR = ("dollar", "dollars", "cent", "cents")
_CURRENCIES: dict[str, tuple[str, str, str, str]] = {
    "$": _DOLLAR, "US$": ("U S dollar", "U S dollars", "cent", "cents"), "USD": ("U S dollar", "U S dollars", "cent", "cents"),
    "A$": ("Australian dollar", "Australian dollars", "cent", "cents"), "AU$": ("Australian dollar", "Australian dollars", "cent", "cents"),
    "AUD": ("Australian dollar", "Australian dollars", "cent", "cents"),
    "C$": ("Canadian dollar", "Canadian dollars", "cent", "cents"), "CA$": ("Canadian dollar", "Canadian dollars", "cent", "cents"),
    "CAD": ("Canadian dollar", "Canadian dollars", "cent", "cents"),
    "NZ$": ("New Zealand dollar", "New Zealand dollars", "cent", "cents"), "NZD": ("New Zealand dollar", "New Zealand dollars", "cent", "cents"),
    "HK$": ("Hong Kong dollar", "Hong Kong dollars", "cent", "cents"), "HKD": ("Hong Kong dollar", "Hong Kong dollars", "cent", "cents"),
    "S$": ("Singapore dollar", "Singapore dollars", "cent", "cents"), "SGD": ("Singapore dollar", "Singapore dollars", "cent", "cents"),
    "R$": ("real", "reais", "centavo", "centavos"), "BRL": ("real", "reais", "centavo", "centavos"),
    "€": ("euro", "euros", "cent", "cents"), "EUR": ("euro", "euros", "cent", "cents"),
    "£": ("pound", "pounds", "penny", "pence"), "GBP": ("pound", "pounds", "penny", "pence"),
    "¥": ("yen", "yen", "sen", "sen"), "JPY": ("yen", "yen", "sen", "sen"),
    "CNY": ("yuan", "yuan", "fen", "fen"), "RMB": ("yuan", "yuan", "fen", "fen"), "CN¥": ("yuan", "yuan", "fen", "fen"),
    "₹": ("rupee", "rupees", "paisa", "paise"), "INR": ("rupee", "rupees", "paisa", "paise"), "Rs": ("rupee", "rupees", "paisa", "paise"),
    "Rs.": ("rupee", "rupees", "paisa", "paise"),
    "₽": ("ruble", "rubles", "kopeck", "kopecks"), "RUB": ("ruble", "rubles", "kopeck", "kopecks"),
    "₩": ("won", "won", "jeon", "jeon"), "KRW": ("won", "won", "jeon", "jeon"),
    "₺": ("lira", "lira", "kurush", "kurush"), "TRY": ("lira", "lira", "kurush", "kurush"),
    "₴": ("hryvnia", "hryvnias", "kopeck", "kopecks"), "UAH": ("hryvnia", "hryvnias", "kopeck", "kopecks"),
    "₪": ("shekel", "shekels", "agora", "agorot"), "ILS": ("shekel", "shekels", "agora", "agorot"),
    "₫": ("dong", "dong", "hao", "hao"), "₱": ("peso", "pesos", "centavo", "centavos"), "PHP": ("peso", "pesos", "centavo", "centavos"),
    "MX$": ("Mexican peso", "Mexican pesos", "centavo", "centavos"), "MXN": ("Mexican peso", "Mexican pesos", "centavo", "centavos"),
    "₦": ("naira", "naira", "kobo", "kobo"), "₿": ("bitcoin", "bitcoin", "", ""), "BTC": ("bitcoin", "bitcoin", "", ""),
    "ETH": ("ether", "ether", "", ""), "฿": ("baht", "baht", "satang", "satang"), "THB": ("baht", "baht", "satang", "satang"),
    "zł": ("zloty", "zlotys", "grosz", "groszy"), "PLN": ("zloty", "zlotys", "grosz", "groszy"),
    "CHF": ("Swiss franc", "Swiss francs", "centime", "centimes"), "Fr.": ("franc", "francs", "centime", "centimes"),
    "SEK": ("Swedish krona", "Swedish kronor", "ore", "ore"), "NOK": ("Norwegian krone", "Norwegian kroner", "ore", "ore"),
    "DKK": ("Danish krone", "Danish kroner", "ore", "ore"), "kr": ("krone", "kroner", "ore", "ore"),
    "Kč": ("koruna", "koruna", "haler", "haler"), "CZK": ("koruna", "koruna", "haler", "haler"),
    "ZAR": ("rand", "rand", "cent", "cents"), "AED": ("dirham", "dirhams", "fils", "fils"),
}  # fmt: skip
_SIGNS = "|".join(
    re.escape(sign) for sign in sorted(_CURRENCIES, key=len, reverse=True) if not sign.isalpha() or sign in ("Rs", "kr")
)
_CODES = "|".join(
    sorted((code for code in _CURRENCIES if code.isalpha() and code not in ("kr", "Rs")), key=len, reverse=True)
)
_BEFORE = rf"(?:{_SIGNS}|(?<![A-Za-z])(?:{_CODES})(?=[\s\d]))"
_AFTER = rf"(?:{'|'.join(re.escape(sign) for sign in _CURRENCIES if (not sign.isalnum() and '.' not in sign and len(sign) == 1) or sign in ('zł', 'Kč', 'kr'))}|(?:{_CODES})\b)(?![\w])"
_AMOUNT = rf"(?:\d{{1,3}}(?:[.]\d{{3}})+,\d\d(?!\d)|\d+,\d\d(?![\d,])|{NUMBER})"
_MAGNITUDE = rf"(?:\s?({'|'.join(sorted(MAGNITUDES, key=len, reverse=True))})(?![\w'’])|[\s-]({MAGNITUDE_WORDS})\b)?"
_RANGE_BEFORE = re.compile(
    rf"({_BEFORE})\s?({_AMOUNT})({_MAGNITUDE})\s?(?:[-–—]|to)\s?(?:\1)?\s?({_AMOUNT})({_MAGNITUDE})(?![\d%])(?!\s?(?:percent|times|people)\b)"
)
_DOLLARS = "USD|CAD|AUD|NZD|SGD|HKD"
_PREFIXED = re.compile(
    rf"((?<![A-Za-z])[-−–]\s?)?(?<![\w])({_BEFORE})\s?([-−])?({_AMOUNT}){_MAGNITUDE}(\+)?(?!\d)(?:[\s-](?:dollars?|euros?|pounds?|yen|rupees?)\b)?(?:\s({_DOLLARS})\b)?"
)
_SUFFIXED = re.compile(rf"(?<![\w.,])([-−])?({_AMOUNT}){_MAGNITUDE}\s?({_AFTER})(?!\d)")
_PENCE = re.compile(r"(?<![\w.,])(\d{1,2})p\b(?!\s?(?:video|x\b))")
_CENTS = re.compile(rf"(?<![\w.,])({NUMBER}(?=\s?¢)|\d\d(?=c\b))\s?[¢c]")
_PER = re.compile(
    r"(?<=[a-z])\s?/\s?(mo|month|months|yr|year|hr|hour|h|day|d|week|wk|night|person|kg|lb|oz|unit|user|seat|item|head|sq ?ft|gallon|gal|liter|litre|l|"
    r"mile|km|min|minute|share|ton|dozen|box|pack|piece|pc|page|word|token|call|GB|MB|kWh|MWh|barrel|bbl)\b(?:\.(?=\s+[a-z]|[,;:)]))?"
)
_TICKER = re.compile(r"(?<!\w)\$(?=[A-Z]{1,5}\b)")  # of a share: $TSLA
_FOR = re.compile(r"(?<=[\w])-for-(?=[$€£¥])")  # 2-for-$5
_CENTS_OF = re.compile(r"\.\d\d$")
_PER_SEVERAL = re.compile(r"(?<=dollars|..euros|.pounds|..cents)\s?/\s?(?=\d)")
_EACH = re.compile(r"(?<=\d)\s?/\s?(day|week|month|year|hour|minute|night|person|user|item|seat|head|share|page)\b")
_PER_WORDS = {"mo": "month", "yr": "year", "hr": "hour", "h": "hour", "d": "day", "wk": "week", "lb": "pound", "oz": "ounce",
              "kg": "kilogram", "sq ft": "square foot", "sqft": "square foot", "gal": "gallon", "l": "liter", "km": "kilometer",
              "min": "minute", "pc": "piece", "GB": "gigabyte", "MB": "megabyte", "kWh": "kilowatt hour", "MWh": "megawatt hour",
              "bbl": "barrel"}  # fmt: skip
_DETERMINER = re.compile(
    r"(?:\b(?:a|an|another|this|that|each|every|one|the|our|my|his|her|their|your|its)\s+(?:[\d.,]+\s(?:\w+\s)?to\s)?)$",
    re.I,
)
_AS_ADJECTIVE = re.compile(
    r"(?:[ -](?:bill|bills|coin|note|gift|fee|fine|budget|deal|ticket|discount|prize|reward|grant|loan|investment|house|home|contract|"
    r"lawsuit|settlement|bonus|donation|fund|project|company|market|industry|voucher|coupon|deposit|payment|check|cheque|purchase|"
    r"question|lunch|meal|minimum|credit|tip|subscription|plan|surcharge|penalty|increase|mansion|apartment|bet|stake|bailout|"
    r"round|valuation|price|tag|shipping|charge|cap|limit|range|figure)\b|-a-)"
)


def read_money(text: str) -> str:
    """`$2.5M` → two point five million dollars; `€9,99` → nine euros and ninety nine cents."""
    text = _FOR.sub(" for ", text)
    text = _RANGE_BEFORE.sub(_range, _TICKER.sub("", text))
    text = _PREFIXED.sub(
        lambda m: (
            ("minus " if m[1] or m[3] else "")
            + _amount(m[8] or m[2], m[4], m[5] or m[6], m)
            + (" plus" if m[7] else "")
        ),
        text,
    )
    text = _SUFFIXED.sub(lambda m: ("minus " if m[1] else "") + _amount(m[5], m[2], m[3] or m[4], m), text)
    text = _CENTS.sub(lambda m: f"{number(m[1])} cent{'' if is_one(m[1]) else 's'}", text)
    text = _PENCE.sub(lambda m: f"{cardinal(m[1])} {'penny' if m[1] == '1' else 'pence'}", text)
    if "/" in text:
        text = _PER_SEVERAL.sub(" per ", text)
        text = _EACH.sub(r" per \1", text)
        text = _PER.sub(lambda m: f" per {_PER_WORDS.get(m[1], m[1])}", text)
    return text


def _range(match: re.Match[str]) -> str:
    sign, low, low_scale, high = match[1], match[2], match[4] or match[5], match[6]
    high_scale = match[8] or match[9]
    if _CENTS_OF.search(low) and not low_scale:
        return f"{_amount(sign, low, None, match)} to {_amount(sign, high, high_scale, match)}"
    words = number(_english(low))
    if low_scale and low_scale != high_scale:
        words += " " + _scale(low_scale)
    return f"{words} to {_amount(sign, high, high_scale, match)}"


def _amount(sign: str, text: str, scale: str | None, match: re.Match[str]) -> str:
    one, several, hundredth, hundredths = _CURRENCIES[sign]
    amount = _english(text)
    adjective = re.search(r"-(?:dollar|euro|pound)$", match[0]) or (
        _AS_ADJECTIVE.match(match.string, match.end()) and _DETERMINER.search(match.string[: match.start()])
    )
    if scale:
        return f"{number(amount)} {_scale(scale)} {one if adjective else several}"
    whole, point, rest = amount.partition(".")
    if point and len(rest) == 2 and hundredth:
        whole, cents = whole or "0", str(int(rest))
        parts = []
        if int(whole.replace(",", "")):
            parts.append(f"{cardinal(whole)} {one if is_one(whole) or adjective else several}")
        if cents != "0":
            parts.append(f"{cardinal(cents)} {hundredth if cents == '1' or adjective else hundredths}")
        return " and ".join(parts) or f"zero {several}"
    return f"{number(amount)} {one if is_one(amount) or adjective else several}"


def _scale(text: str) -> str:
    return MAGNITUDES.get(text, text)


def _english(text: str) -> str:
    """An amount with a comma before two last digits is written the European way."""
    if re.search(r",\d\d$", text):
        return text.replace(".", "").replace(",", ".")
    return text
