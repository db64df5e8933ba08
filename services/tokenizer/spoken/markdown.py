"""Markdown as language models write it: what lays out a text is dropped, what it lays out is kept."""

from __future__ import annotations

import re

_RULE = re.compile(r"[ ]{0,3}(?:[-*_=~#+][ \t]*){3,}")
_TABLE_RULE = re.compile(r"\s*\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?\s*")
_HEADING = re.compile(r"\s{0,3}#{1,6}(?:\s+|$)")
_HEADING_END = re.compile(r"\s+#{1,6}\s*$")
_QUOTE = re.compile(r"\s{0,3}(?:>\s?)+(?!\s*[\d=])")
_BULLET = re.compile(r"\s*(?:[-*+•·–—]\s+|•)(?:\[[ xX]?\]\s+)?")
_NUMBERED = re.compile(r"\s*(\d{1,3})[.)]\s+(?=\S)")
_IMAGE_OR_LINK = re.compile(r"!?\[([^\[\]\n]*)\]\((?:[^()\s]|\([^()\s]*\))*(?:\s+[\"'][^\"'\n]*[\"'])?\)")
_REFERENCE_LINK = re.compile(r"!?\[([^\[\]\n]+)\]\[[^\[\]\n]*\]")
_LINK_TARGET = re.compile(r"^\s*\[[^\[\]\n]+\]:\s*(?:\w+://|www\.)\S+.*$", re.M)
_FOOTNOTE = re.compile(r"\[\^[^\[\]\s]+\]:?")
_MARKS = r"(?:\[[1-9]\d{0,2}(?:\s?[,–-]\s?\d{1,3})*\])+"
_CITATION = re.compile(
    rf"(?<=[\w.,;:!?\"')]){_MARKS}|(?<=[\w\"')])(?<!\band)(?<!\bor)(?<!\bsee)(?<!\bin)(?<!\bof)(?<!\bby)(?<!\bfrom) {_MARKS}(?=[.,;:!?]|$)"
)
_AUTOLINK = re.compile(r"<((?:https?://|mailto:)[^<>\s]+|[\w.+-]+@[\w-]+\.[\w.-]+)>")
_SPAN = r"(?=[^\s{0}])(.{{1,400}}?)(?<=[^\s{0}])"
_EMPHASIS = (
    ("**", re.compile(rf"(?<![\d*])(\*\*){_SPAN.format('*')}\1(?![\d*])", re.S)),
    ("*", re.compile(rf"(?<![\w*])(\*{{1,3}}){_SPAN.format('*')}\1(?![\w*])", re.S)),
    ("_", re.compile(rf"(?<!\w)(_{{1,3}}){_SPAN.format('_')}\1(?!\w)", re.S)),
    ("~~", re.compile(rf"(~~){_SPAN.format('~')}\1", re.S)),
    ("||", re.compile(rf"(\|\|){_SPAN.format('|')}\1", re.S)),
    ("==", re.compile(rf"(==){_SPAN.format('=')}\1", re.S)),
)
_NESTED = 3
_SUBSCRIPT = re.compile(r"(?<=\w)~(\w{1,4})~|(?<=\w)\^(st|nd|rd|th|\w{1,2})\^")
_ESCAPE = re.compile(r"\\([\\`*_{}\[\]()#+.!~|<>\"'$%&-])")
_LATEX = (
    (re.compile(r"\\[()\[\]]|\$\$"), " "),
    (re.compile(r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}"), r"\1 over \2"),
    (re.compile(r"\\sqrt\{([^{}]*)\}"), r"√\1"),
    (re.compile(r"\\(?:text|mathrm|mathbf|textbf|emph)\{([^{}]*)\}"), r"\1"),
    (re.compile(r"\\(?:times|cdot)\b"), "×"),
    (re.compile(r"\\leq?\b"), "≤"),
    (re.compile(r"\\geq?\b"), "≥"),
    (re.compile(r"\\neq?\b"), "≠"),
    (re.compile(r"\\approx\b"), "≈"),
    (re.compile(r"\\pm\b"), "±"),
    (re.compile(r"\\pi\b"), "π"),
)
_DOLLARS = re.compile(
    r"\$\$([^$\n]{1,400})\$\$|(?<![\w$])\$(?=[A-Za-z\\])([^$\n]{1,80}?)(?<!\s)\$(?![\w$])"
)  # a formula
_LATEX_SIGN = re.compile(r"\\(?:[()\[\]]|[a-z]{2,})")
_LONE_LETTER = re.compile(r"(?:^|\s)[A-Z]$")
_SENTENCE_END = re.compile(r"[.!?:;,…][\"')\]*_]*\s*$")


def strip_markdown(text: str) -> str:
    """Prose on one line; what stood on lines of its own ends as a sentence."""
    if "$" in text:
        text = _DOLLARS.sub(lambda m: m[1] or m[2], text)
    if "\\" in text and _LATEX_SIGN.search(text):
        for pattern, replacement in _LATEX:
            text = pattern.sub(replacement, text)
    if "[" in text:
        text = _LINK_TARGET.sub("", text)
        text = _IMAGE_OR_LINK.sub(r"\1", text)
        text = _FOOTNOTE.sub("", text)
        text = _CITATION.sub("", text)
        text = _REFERENCE_LINK.sub(r"\1", text)
    if "<" in text:
        text = _AUTOLINK.sub(r" \1 ", text)
    text = _join_lines(text)
    for sign, pattern in _EMPHASIS:
        for _ in range(_NESTED if sign in text else 0):
            bare = pattern.sub(r"\2", text)
            if bare == text:
                break
            text = bare
    text = _SUBSCRIPT.sub(_script, text)
    return _ESCAPE.sub(r"\1", text) if "\\" in text else text


def _script(match: re.Match[str]) -> str:
    """H~2~O, x^2^, 21^st^."""
    return match[1] or (match[2] if match[2] in ("st", "nd", "rd", "th") else f"^{match[2]}")


def _join_lines(text: str) -> str:
    out = ""
    for line in text.split("\n"):
        bare, is_block = _strip_line(line)
        bare = bare.strip()
        if out and (is_block or not bare) and not _SENTENCE_END.search(out):
            out += _end(out)
        if bare:
            out += (" " if out else "") + bare
            if is_block and "\n" in text and not _SENTENCE_END.search(out):
                out += _end(out)
    return out


def _end(line: str) -> str:
    """A full stop, but not behind a letter by itself, which it would make an initial: Plan B. Price."""
    return "," if _LONE_LETTER.search(line) else "."


def _strip_line(line: str) -> tuple[str, bool]:
    """(the line's text, whether it is a heading, a list's item or a table's row)."""
    if _RULE.fullmatch(line) or ("-" in line and _TABLE_RULE.fullmatch(line)):
        return "", True
    if match := _QUOTE.match(line):
        line = line[match.end() :]
    if match := _HEADING.match(line):
        return _HEADING_END.sub("", line[match.end() :]), True
    if match := _BULLET.match(line):
        return line[match.end() :], True
    if match := _NUMBERED.match(line):
        return f"{match[1]}. {line[match.end() :]}", True
    if line.count("|") >= 2 and line.strip().startswith("|") and (line.strip().endswith("|") or line.count("|") > 2):
        return ", ".join(cell.strip() for cell in line.strip().strip("|").split("|") if cell.strip()), True
    return line, False
