"""HTML, SSML and control tokens: tags go, what they enclose stays, entities are read, a break is a pause."""

from __future__ import annotations

import html
import re

_CONTROL_TOKEN = re.compile(
    r"<\|[^|<>\n]{1,64}\|>|<｜[^｜<>\n]{1,64}｜>|<(?:bos|eos|pad|unk|mask)>|\[/?INST\]|<</?SYS>>"
)
_COMMENT = re.compile(r"<!--.*?-->|<\?[a-zA-Z][^<>]{0,200}\?>|<!\[CDATA\[|\]\]>|<![a-zA-Z][^<>]{0,200}>", re.S)
_UNSPOKEN_ELEMENT = re.compile(r"<(script|style|template|head)\b[^<>]*>.*?</\1\s*>", re.S | re.I)
_ATTRIBUTE = r"""\s+[\w:.@-]+\s*=\s*(?:"[^"<>]*"|'[^'<>]*'|[^\s<>"'=]+)"""
_TAG = re.compile(rf"<(/?)([A-Za-z][\w:.-]*)((?:{_ATTRIBUTE}|\s+(?:disabled|checked|hidden|open))*)\s*(/?)>")
_BLOCKS = frozenset(
    "p div br li ul ol tr table h1 h2 h3 h4 h5 h6 hr blockquote section article header footer title s dd dt pre "
    "paragraph sentence option body speak details summary figcaption figure aside main nav form fieldset legend label button "
    "think thinking".split()
)
_INLINE = frozenset(
    "a abbr b bdi bdo cite code data del dfn em font i ins kbd mark q rp rt ruby samp small span strike strong sub sup time tt u var wbr "
    "emphasis prosody voice phoneme say-as lang w token mark express-as amazon:effect".split()
)
_OTHERS = frozenset(
    "address area audio base big canvas caption center col colgroup datalist dialog embed frame hgroup html iframe img input link map "
    "meta meter nobr noscript object optgroup output param path picture progress search select slot source strike svg tbody textarea "
    "tfoot thead track video break laugh laughs laughter laughing chuckle chuckles giggle sigh sighs gasp cough sniffle groan yawn "
    "breath breathe pause silence noise music clear_throat".split()
)  # of HTML, and the sounds of other speech services
_CELLS = frozenset(("td", "th"))
_RAISED = re.compile(r"<sup>\s*(-?\d{1,3}|st|nd|rd|th)\s*</sup>", re.I)
_SUB_ALIAS = re.compile(r"""<sub\b[^<>]*\balias\s*=\s*["']([^"'<>]*)["'][^<>]*>[^<>]*</sub\s*>""", re.I)
_SAY_AS = re.compile(
    r"""<say-as\b[^<>]*\binterpret-as\s*=\s*["'](?:characters|spell-out|verbatim|digits)["'][^<>]*>([^<>]*)</say-as\s*>""",
    re.I,
)
_BREAK = re.compile(r"<break\b([^<>]*)>(?:\s*</break\s*>)?", re.I)
_BREAK_TIME = re.compile(r"""time\s*=\s*["']?\s*(\d+(?:\.\d*)?|\.\d+)\s*(ms|s)""", re.I)
_BREAK_STRENGTH = re.compile(r"""strength\s*=\s*["']?([\w-]+)""", re.I)
_STRENGTHS_MS = {"none": 0.0, "x-weak": 100.0, "weak": 200.0}
_DEFAULT_BREAK_MS = 500.0
_SHORTEST_STOP_MS = 250.0  # a shorter break is a comma, a longer one a full stop
_ALT = re.compile(r"""\balt\s*=\s*["']([^"']*)["']""")
_NESTED = 3
_PUNCTUATED = frozenset(".,;:!?")


def strip_tags(text: str) -> str:
    """The text between tags. Elements that are paragraphs or lines stand on lines of their own.

    What an entity spells may be a tag or an entity again: &lt;b&gt; in text that was escaped once too often.
    """
    for _ in range(_NESTED):
        before, text = text, _strip_once(text)
        if text == before:
            break
    return text


def _strip_once(text: str) -> str:
    if "<" in text or "[" in text:
        text = _CONTROL_TOKEN.sub(" ", text)
    if "<" in text:
        text = _UNSPOKEN_ELEMENT.sub(" ", _COMMENT.sub(" ", text))
        text = _RAISED.sub(lambda m: m[1] if m[1].isalpha() else f"^{m[1]}", text)
        text = _SUB_ALIAS.sub(r"\1", text)
        text = _SAY_AS.sub(lambda m: " ".join("".join(m[1].split())), text)
        text = _BREAK.sub(_pause, text)
        text = _TAG.sub(_tag, text)
    return html.unescape(text) if "&" in text else text


def _tag(match: re.Match[str]) -> str:
    name = match[2].lower()
    if name == "img" and (alt := _ALT.search(match[3])):
        return f" {alt[1]} "
    if name in _BLOCKS:
        return "\n"
    if name in _CELLS:
        return ", " if match[1] else " "
    if name in _INLINE:
        return ""
    is_bare = not (match[1] or match[3] or match[4])
    if is_bare and name not in _OTHERS and f"</{name}" not in match.string.lower():
        return f" {match[2]} "  # no element: Dear <name>
    return " "


def _pause(match: re.Match[str]) -> str:
    """A break becomes the punctuation at which the voices make one of about that length."""
    if time := _BREAK_TIME.search(match[1]):
        ms = float(time[1]) * (1000 if time[2].lower() == "s" else 1)
    else:
        strength = _BREAK_STRENGTH.search(match[1])
        ms = _STRENGTHS_MS.get(strength[1].lower(), _DEFAULT_BREAK_MS) if strength else _DEFAULT_BREAK_MS
    before = match.string[: match.start()].rstrip()
    if ms <= 0 or not before or before[-1] in _PUNCTUATED:
        return " "
    return ", " if ms < _SHORTEST_STOP_MS else ". "
