"""Take out what has no sound and is not seen either: control, format and direction characters, overlaid strokes."""

from __future__ import annotations

import re
import unicodedata

_ESCAPE_SEQUENCE = re.compile(
    r"\x9b[0-?]*[ -/]*[@-~]|\x1b(?:\[[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor moves
    r"|\][^\x07\x1b\n]*(?:\x07|\x1b\\)?"  # OSC: titles, links
    r"|[PX^_][^\x1b\n]*(?:\x1b\\)?|[ -/]*[0-~])?"
)
_LINE_BREAK = re.compile(r"\r\n?|[\n\v\f\x1c-\x1e\x85\u2028\u2029]")
_PLAIN = re.compile(r"[\n -~]*")
# Not letters to speak: format, control, private use, unassigned, surrogates.
_UNSEEN = frozenset(("Cc", "Cf", "Co", "Cn", "Cs"))
_FILLERS = frozenset("\u115f\u1160\u17b4\u17b5\u3164\uffa0\u2800\u034f")  # letters and signs by category, blank to see
# Scripts whose vowels and tones are combining marks lie here; marks on other letters are accents.
_ACCENTED = re.compile(r"[\u0000-\u052f\u1e00-\u1fff\u2000-\u2bff]")


def clean(text: str) -> str:
    """Printable text with \\n as its only line break and blanks as its only other spaces.

    Letters keep an accent that Unicode has composed with them (é, ế) and lose piled up or overlaid marks.
    """
    if _PLAIN.fullmatch(text):
        return text
    text = _ESCAPE_SEQUENCE.sub("", text)
    text = _LINE_BREAK.sub("\n", text)
    if text.isascii():
        return "".join(c if c >= " " or c == "\n" else " " if c == "\t" else "" for c in text if c != "\x7f")
    out: list[str] = []
    base, marks = "", ""
    for char in unicodedata.normalize("NFD", text):
        category = unicodedata.category(char)
        if category[0] == "M":
            marks += char
            continue
        if char != "\n":
            if char == "\t" or category == "Zs":
                char = " " if char not in _GROUPING_SPACES else char
            elif category in _UNSEEN or char in _FILLERS:
                continue  # a mark after it still belongs to the letter before it
        out.append(_with_marks(base, marks))
        base, marks = char, ""
    out.append(_with_marks(base, marks))
    return unicodedata.normalize("NFC", "".join(out))  # composes Hangul again


# Kept for the language's stage, where they part the digits of one number: 10 000.
_GROUPING_SPACES = frozenset("\u00a0\u2009\u202f")


def _with_marks(base: str, marks: str) -> str:
    """The letter with its accents, where those make one character together."""
    if not marks:
        return base
    if base and not _ACCENTED.match(base) and base not in " \n":
        return base + "".join(mark for mark in marks if unicodedata.category(mark) != "Me" and not _is_variation(mark))
    whole = unicodedata.normalize("NFC", base + marks)
    return whole if len(whole) == 1 and base != " " else base


def _is_variation(mark: str) -> bool:
    return "\ufe00" <= mark <= "\ufe0f" or "\U000e0100" <= mark <= "\U000e01ef" or "\u180b" <= mark <= "\u180d"
