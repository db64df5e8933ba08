"""Which scripts a language is written in, and which script a letter belongs to."""

from __future__ import annotations

import unicodedata

_LATIN = ("Latin",)
# Scripts by language (BCP 47 primary tag). A language that is missing is taken to be written in Latin letters.
_SCRIPTS: dict[str, tuple[str, ...]] = {
    "ar": ("Arabic",), "fa": ("Arabic",), "ur": ("Arabic",), "ps": ("Arabic",),
    "zh": ("Han", "Latin"), "yue": ("Han", "Latin"), "ja": ("Han", "Hiragana", "Katakana", "Latin"),
    "ko": ("Hangul", "Han", "Latin"),
    "ru": ("Cyrillic",), "uk": ("Cyrillic",), "bg": ("Cyrillic",), "be": ("Cyrillic",), "mk": ("Cyrillic",),
    "kk": ("Cyrillic",), "mn": ("Cyrillic",), "sr": ("Cyrillic", "Latin"),
    "el": ("Greek",), "he": ("Hebrew",), "yi": ("Hebrew",), "hy": ("Armenian",), "ka": ("Georgian",),
    "hi": ("Devanagari",), "mr": ("Devanagari",), "ne": ("Devanagari",), "bn": ("Bengali",), "pa": ("Gurmukhi",),
    "gu": ("Gujarati",), "ta": ("Tamil",), "te": ("Telugu",), "kn": ("Kannada",), "ml": ("Malayalam",),
    "si": ("Sinhala",), "th": ("Thai",), "lo": ("Lao",), "my": ("Myanmar",), "km": ("Khmer",), "am": ("Ethiopic",),
}  # fmt: skip
# First words of Unicode's names, where they differ from the script's.
_NAMES = {"CJK": "Han", "IDEOGRAPHIC": "Han", "KANGXI": "Han", "FEMININE": "Latin", "MASCULINE": "Latin",
          "MODIFIER": "", "KATAKANA-HIRAGANA": "Katakana", "HALFWIDTH": "Katakana", "ETHIOPIC": "Ethiopic"}  # fmt: skip


def scripts_of(languages: tuple[str, ...]) -> frozenset[str]:
    """Scripts that these languages are written in."""
    return frozenset(script for tag in languages for script in _SCRIPTS.get(tag.split("-")[0].lower(), _LATIN))


def script_of(char: str) -> str:
    """Script of a letter, by its Unicode name; empty for what belongs to none."""
    if char.isascii():
        return "Latin" if char.isalpha() else ""
    if unicodedata.category(char)[0] not in "L":
        return ""
    word = unicodedata.name(char, "").split(" ")[0]
    return _NAMES.get(word, word.capitalize())


def foreign_letters(text: str, scripts: frozenset[str]) -> tuple[str, str] | None:
    """(script, the letters) of the first run of letters outside of `scripts`; None when there is none."""
    if text.isascii() and "Latin" in scripts:
        return None
    for start, char in enumerate(text):
        script = script_of(char)
        if script and script not in scripts:
            end = start + 1
            while end < len(text) and script_of(text[end]) == script:
                end += 1
            return script, text[start:end]
    return None
