"""Words that are written short without a full stop: thx, idk, u, 2nite, dept, api."""

from __future__ import annotations

import re

_WORDS = {
    "vs": "versus", "approx": "approximately", "dept": "department", "govt": "government", "etc": "et cetera", "thru": "through", "ok": "okay",
    "pls": "please", "plz": "please", "thx": "thanks", "thnx": "thanks", "tnx": "thanks", "sry": "sorry", "ppl": "people", "tmrw": "tomorrow",
    "msg": "message", "txt": "text", "abt": "about", "rly": "really", "ur": "your", "llms": "L L M's", "apis": "A P I's",
    "ctrl": "control", "cmd": "command", "hwy": "highway", "bday": "birthday", "pts": "points",
}  # fmt: skip
_WITH_DIGITS = {
    "2nite": "tonight", "2night": "tonight", "2day": "today", "2moro": "tomorrow", "2morrow": "tomorrow", "b4": "before", "gr8": "great",
    "l8r": "later", "l8": "late", "m8": "mate", "w8": "wait", "h8": "hate", "str8": "straight", "g2g": "G two G",
}  # fmt: skip
SPELT = (
    "btw idk tbh imo imho fyi asap tbd diy faq atm rsvp omg brb smh ikr afaik iirc pov ngl nvm wfh eta ttyl gtg lmk hmu ily irl idc omw "
    "ceo cfo cto usa fbi html url pdf gpu cpu llm api sql http https usb gps"
).split()
SHORTHAND = frozenset((*_WORDS, *SPELT))  # in small letters; what else is read here is never plain
_SHORT = re.compile(rf"(?<![\w'’.@-])({'|'.join(sorted(SHORTHAND, key=len, reverse=True))})(?![\w'’@-]|\.\w)", re.I)
_NAMES = frozenset(("Abt", "Eta", "Imo"))
_SHORT_WITH_DIGITS = re.compile(rf"(?<![\w'’.@-])({'|'.join(_WITH_DIGITS)})(?![\w'’@-]|\.\w)", re.I)
# "u" is a letter after a letter, or after a word that speaks of one.
_SEE_YOU = re.compile(
    r"(?<![\w'’.&/-])(?<![a-z] )(?:c u\b(?=\s|[.!?,]|$)|cu\b(?=\s(?:later|soon|then|there|at|around|on|in|tonight|tomorrow)\b|[.!?]*$))"
)
_YOU = re.compile(
    r"(?<![\w'’.&/^*+=(-])(?<!\b[a-z] )(?<!\b[a-z], )(?<!letter )(?<!letters )(?<!vowel )(?<!variable )(?<!\bthe )(?<!\ban )(?<!\band )(?<!\bof )"
    r"(?<!\bset )u(?=\s[a-z]{2,}\b|\sr\b|[.!?,]|$)"
)
_ARE = re.compile(r"(?<=\byou )r\b(?=\s)|(?<=\b[Ww]e )r\b(?=\s)|(?<=\b[Tt]hey )r\b(?=\s)|\br(?=\s(?:u|you|we|they)\b)")
_BE = re.compile(r"(?<=(?:ould|will|must|ight|.can|..to) )b\b(?=\s[a-z])")
_OKAY = re.compile(r"(?:(?<=[,.!?] )|^)k(?=[?.!]*$)")


def read_shorthand(text: str) -> str:
    """`thx, c u 2nite` → thanks, see you tonight; `idk` → I D K."""
    text = _SHORT.sub(_short, text)
    text = _SHORT_WITH_DIGITS.sub(lambda m: _WITH_DIGITS[m[1].lower()], text)
    text = _YOU.sub("you", _SEE_YOU.sub("see you", text))
    text = _BE.sub("be", text)
    return _OKAY.sub("okay", _ARE.sub("are", text))


def _short(match: re.Match[str]) -> str:
    """Capitals are another module's; Thx at a sentence's beginning is Thanks."""
    word = match[1]
    if word.isupper() or word in _NAMES:
        return word
    words = _WORDS.get(word.lower())
    if words is None:
        return " ".join(word.upper())
    return words[0].upper() + words[1:] if word[0].isupper() else words
