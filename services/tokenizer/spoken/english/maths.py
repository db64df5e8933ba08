"""Signs of arithmetic, powers, comparisons, Greek letters that stand alone."""

from __future__ import annotations

import re

from services.tokenizer.spoken.english.numbers import NUMBER, cardinal, number, ordinal

_SIGNS = {
    "×": "times", "÷": "divided by", "±": "plus or minus", "∓": "minus or plus", "=": "equals", "≠": "is not equal to", "≈": "is approximately",
    "≤": "is less than or equal to", "≥": "is greater than or equal to", "<": "is less than", ">": "is greater than", "≡": "is equivalent to",
    "∝": "is proportional to", "∞": "infinity", "√": "the square root of", "∛": "the cube root of", "∑": "the sum of", "∏": "the product of",
    "∫": "the integral of", "∂": "partial", "∇": "nabla", "∆": "delta", "∈": "in", "∉": "not in", "∪": "union", "∩": "intersection",
    "⊂": "is a subset of", "⊆": "is a subset of", "∅": "the empty set", "∀": "for all", "∃": "there exists", "∧": "and", "∨": "or", "¬": "not",
    "∴": "therefore", "∵": "because", "∼": "about", "⊕": "plus", "⊗": "times", "−": "minus", "·": "times", "″": "seconds", "′": "prime",
    "≪": "is much less than", "≫": "is much greater than", "⊥": "is perpendicular to", "∠": "angle",
}  # fmt: skip
_GREEK = dict(
    zip("αβγδεζηθικλμνξοπρςστυφχψωΑΒΓΔΕΖΗΘΙΚΛΜΝΞΟΠΡΣΤΥΦΧΨΩϵϑϕ",
        (*(greek := "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma sigma tau upsilon phi "
           "chi psi omega").split(), *[name for i, name in enumerate(greek.split()) if i != 17], "epsilon", "theta", "phi"), strict=True)
)  # fmt: skip
_GREEK_LETTER = re.compile(rf"(?<![^\W\dA-Za-z_])([{''.join(_GREEK)}])(?![^\W\dA-Za-z_])")
_SUPERSCRIPT_ORDER = {"2": "squared", "3": "cubed"}
_POWER = re.compile(
    r"(?<=[\w)])\s?(?:\^|(?<![A-Za-z]{2})\*\*(?=\(?[\d-]|[a-z]\b))\s?(?:\{([^{}]{1,12})\}|\(([^()]{1,12})\)|([-−+]?\w+(?:\.\d+)?))"
)
_CHARGE = re.compile(r"(?<=[A-Za-z\d)])\^(\d{0,2})([+-])(?![\w(])")  # of an ion
_PLUS = re.compile(r"(?<=[\w)°%])\s?\+\s?(?=[\w(.√-])|(?<![\w+])\+(?=\d)")
_MINUS = re.compile(
    r"(?<=\d)-(?=\d+(?:\.\d+)?\s?=)|(?<=[\d)])\s[-−–]\s(?=[\d(a-z])(?=\(?[\da-z]{1,4}\b)|(?<=\b[a-z])\s[-−]\s(?=\d)|(?<=[\w)])\s?−\s?(?=[\w(])"
)
_TIMES = re.compile(r"(?<=\d)\s[xX]\s(?=\d)")
_NEGATIVE = re.compile(rf"(?<![\w.,)%–—-])[-−](?={NUMBER})")
_DIVIDED = re.compile(r"(?<=[\d)])\s/\s(?=[\d(])")
_PROGRAMMING = (("&&", " and "), ("||", " or "), ("+=", " plus equals "), ("-=", " minus equals "), ("!=", " is not equal to "), ("<=", " is less than or equal to "), (">=", " is greater than or equal to "), ("===", " equals "),
                ("==", " equals "), ("=>", " to "), ("->", " to "), ("<-", " from "), ("+/-", " plus or minus "), ("+-", " plus or minus "))  # fmt: skip
_APPROXIMATE = re.compile(r"(?<!\d)(?<!\d )(?<!\) )(?<!\b[a-zπ] )[~≈∼]\s?(?=[$€£¥]?\d)")
_BOUND = re.compile(r"(?<![^\s(])(<=|>=|[<>≤≥])(?=[$€£¥]?\d)")
_BOUNDS = {"<": "less than", ">": "more than", "≤": "at most", "<=": "at most", "≥": "at least", ">=": "at least"}
_TWICE = re.compile(r"\b([Tt]he)\s+the(?=\s(?:square|cube|sum|product|integral)\b)|(?<=sum |uct |ral )(of)\s+of\b")
_FACTORIAL = re.compile(r"(?<![\w.])(\d{1,2})!(?=\s?[=+*/×÷-])")
_FUNCTION = re.compile(r"\b([fghOP]|sin|cos|tan|log|ln|exp)_?(\d{0,2})\(([^()]{1,20})\)")
_OVER = re.compile(r"(?<![\w.,/])(\d{1,3})/([xyznkabc])(?![\w/])")
_LETTERS_OVER = re.compile(r"(?<![\w.,/])([a-z])/([a-z])(?=\s?[=≈<>≤≥])")
_ISH = re.compile(r"(?<=[\d.%])-?ish\b")
_LONE_NUMERIC = re.compile(
    r"(?<![\w])C\+\+|(?<![\w])([CFJ])#(?!\w)|(?<![\w.])(?:ASP)?\.NET\b|\bNode\.js\b|\bNotepad\+\+|\bA\+(?!\w)|\b([BCDF])\+(?!\w)|\b([ABCDF])[-−](?=[\s.,;!?]|$)"
)
_LANGUAGES = {
    "C++": "C plus plus",
    ".NET": "dot net",
    "ASP.NET": "A S P dot net",
    "Node.js": "Node J S",
    "Notepad++": "Notepad plus plus",
    "A+": "A plus",
}


def read_names(text: str) -> str:
    """Names that have signs in them: C++, C#, .NET, A+, Fe³⁺."""
    text = _ISH.sub(" ish", text)
    if "(" in text:
        text = _FUNCTION.sub(lambda m: f"{m[1]} {m[2]}".rstrip() + f" of {m[3]}", text)
    if "/" in text:
        text = text.replace(")/(", ") over (")
        text = _OVER.sub(r"\1 over \2", _LETTERS_OVER.sub(r"\1 over \2", text))
    if "^" in text:
        text = _CHARGE.sub(lambda m: f" {m[1]} {'plus' if m[2] == '+' else 'minus'}", text)
    return _LONE_NUMERIC.sub(
        lambda m: _LANGUAGES.get(m[0]) or (f"{m[1]} sharp" if m[1] else f"{m[2]} plus" if m[2] else f"{m[3]} minus"),
        text,
    )


def read_approximately(text: str) -> str:
    """`~5` → about 5, `<5` → less than 5; before numbers are read with their units."""
    return _BOUND.sub(lambda m: f"{_BOUNDS[m[1]]} ", _APPROXIMATE.sub("about ", text))


def read_maths(text: str) -> str:
    """`2 + 2 = 4` → 2 plus 2 equals 4; the digits are read later."""
    for sign, words in _PROGRAMMING:
        if sign in text:
            text = text.replace(sign, words)
    text = _FACTORIAL.sub(r"\1 factorial", text)
    text = _MINUS.sub(" minus ", text)
    if "^" in text or "**" in text:
        text = _POWER.sub(_power, text)
    if "*" in text:
        text = re.sub(r"(?<=[\w)])\s?\*\s?(?=[\w(√-])", " times ", text)
    if "+" in text:
        text = _PLUS.sub(" plus ", text)
    text = _TIMES.sub(" times ", text)
    text = _NEGATIVE.sub("minus ", text)
    text = _DIVIDED.sub(" divided by ", text)
    if not text.isascii():
        text = _GREEK_LETTER.sub(lambda m: f" {_GREEK[m[1]]} ", text)
    text = "".join(f" {_SIGNS[char]} " if char in _SIGNS else char for char in text)
    return _TWICE.sub(lambda m: m[1] or m[2], text)


def _power(match: re.Match[str]) -> str:
    power = (match[1] or match[2] or match[3]).strip()
    if power in _SUPERSCRIPT_ORDER:
        return f" {_SUPERSCRIPT_ORDER[power]}"
    negative = power[0] in "-−"
    bare = power.lstrip("+-−")
    if bare.isdigit() and not negative:
        return f" to the {ordinal(bare)}" if len(bare) < 3 else f" to the power of {cardinal(bare)}"
    words = number(bare) if re.fullmatch(NUMBER, bare) else bare
    return f" to the {'minus ' if negative else ''}{words}"
