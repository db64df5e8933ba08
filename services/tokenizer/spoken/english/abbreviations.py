"""Abbreviations: titles, streets, Latin ones, and those of months, measures and companies."""

from __future__ import annotations

import re

from services.tokenizer.spoken.english.sentences import begins_sentence

_TITLES = {
    "Dr": "Doctor", "Mr": "Mister", "Mrs": "Missus", "Ms": "Miz", "Prof": "Professor", "Gov": "Governor", "Sen": "Senator",
    "Rep": "Representative", "Gen": "General", "Col": "Colonel", "Maj": "Major", "Capt": "Captain", "Cpt": "Captain", "Lt": "Lieutenant",
    "Sgt": "Sergeant", "Cpl": "Corporal", "Pvt": "Private", "Rev": "Reverend", "Hon": "Honorable", "Pres": "President", "Msgr": "Monsignor",
    "Adm": "Admiral", "Cmdr": "Commander", "Insp": "Inspector", "Supt": "Superintendent", "Fr": "Father", "Sr": "Sister", "Br": "Brother",
    "Messrs": "Messers", "Mx": "Mix", "Drs": "Doctors",
}  # fmt: skip
# With a full stop, which ends the sentence as well where one ends.
_DOTTED = {
    "Jr": "Junior", "Sr": "Senior", "Inc": "Incorporated", "Ltd": "Limited", "Corp": "Corporation", "Co": "Company", "Bros": "Brothers",
    "etc": "et cetera", "vs": "versus", "approx": "approximately", "appt": "appointment", "apt": "apartment", "Apt": "Apartment",
    "dept": "department", "Dept": "Department", "est": "established", "Est": "Established", "govt": "government", "Univ": "University",
    "misc": "miscellaneous", "max": "maximum", "min": "minimum", "Max": "Maximum", "Min": "Minimum", "avg": "average", "Avg": "Average",
    "temp": "temperature", "vol": "volume", "Vol": "Volume", "ed": "edition", "eds": "editors", "fig": "figure", "Fig": "Figure",
    "figs": "figures", "Figs": "Figures", "eq": "equation", "Eq": "Equation", "ch": "chapter", "Ch": "Chapter", "sec": "section", "Sec": "Section",
    "ref": "reference", "refs": "references", "ver": "version", "tel": "telephone", "Tel": "Telephone", "ext": "extension", "Ext": "Extension",
    "cf": "compare", "viz": "namely", "ca": "circa", "esp": "especially", "incl": "including", "excl": "excluding", "orig": "original",
    "resp": "respectively", "cont": "continued", "assoc": "associate", "asst": "assistant", "Asst": "Assistant", "mgr": "manager",
    "Attn": "Attention", "attn": "attention", "qty": "quantity", "Qty": "Quantity", "tbsp": "tablespoon", "tsp": "teaspoon", "oz": "ounces",
    "lb": "pounds", "lbs": "pounds", "ft": "feet", "hr": "hour", "hrs": "hours", "mins": "minutes", "secs": "seconds", "yr": "year", "yrs": "years",
    "mo": "months", "wk": "week", "wks": "weeks", "Blvd": "Boulevard", "Ave": "Avenue", "Rd": "Road", "Ln": "Lane", "Hwy": "Highway", "Pkwy": "Parkway",
    "Sq": "Square", "Ct": "Court", "Pl": "Place", "Ter": "Terrace", "Bldg": "Building", "Ste": "Suite", "Flr": "Floor", "Ph": "Phone",
    "Mt": "Mount", "Mts": "Mountains", "Ft": "Fort", "Pt": "Point", "Intl": "International", "Natl": "National", "Acad": "Academy", "Inst": "Institute",
    "Hosp": "Hospital", "Rte": "Route", "Esq": "Esquire", "Mfg": "Manufacturing", "pp": "pages", "p": "page", "pg": "page", "pgs": "pages", "chs": "chapters",
    "para": "paragraph", "Nos": "Numbers", "nos": "numbers", "Op": "Opus", "op": "opus", "Ill": "Illinois", "Calif": "California", "Mass": "Massachusetts",
    "Conn": "Connecticut", "pop": "population", "Rm": "Room", "rm": "room", "Fla": "Florida", "Penn": "Pennsylvania", "Wash": "Washington", "rev": "revision", "art": "article", "Art": "Article",
    "Arr": "Arrival", "arr": "arrival", "Dep": "Departure", "dep": "departure", "ea": "each", "Ariz": "Arizona", "Tex": "Texas",
}  # fmt: skip
# Words of their own too, so that their full stop alone says nothing: only before a number or a capital, or as told.
_ONLY_BEFORE_NUMBER = frozenset(
    "rev art Art Arr arr Dep dep min max temp pop Rm rm ed sec ch p pp pg pgs fig figs eq Fig Figs Ch Sec Eq vol Vol op Op para chs Nos nos Apt apt Ste ext Ext Rte Pt est Est ca".split()
)
_ONLY_AFTER_NUMBER = frozenset("oz lb lbs ft hr hrs mins secs yr yrs mo wk wks tbsp tsp".split())
_ONLY_BEFORE_NAME = frozenset("Mt Mts Ft".split())
_AFTER_NAME = frozenset(
    "Jr Sr Inc Ltd Corp Co Bros Esq Blvd Ave Rd Ln Hwy Pkwy Sq Ct Pl Ter Bldg Ill Calif Mass Conn Fla Penn Wash Ariz Tex Univ".split()
)
_NEVER_LAST = frozenset((*_ONLY_BEFORE_NUMBER, *_ONLY_BEFORE_NAME, "vs", "approx", "Attn"))
_AMOUNT_BEFORE = re.compile(
    r"\b(?:an?|per|few|several|one|two|three|four|five|six|seven|eight|nine|ten|half|hundred)\s?$"
)
_NAME_BEFORE = re.compile(r"(?:[A-Z\d][\w'’&]*|[a-z]{3,}),?\s$")
_TITLE = re.compile(rf"\b({'|'.join(_TITLES)})\b\.?(?=\s+(?:[A-Z]|(?:and|or|&)\s+[A-Z]))")
_DOTLESS_TITLES = frozenset("Dr Mr Mrs Ms Prof Sgt Capt Lt".split())
_DOT = re.compile(rf"(?<![\w.@/-])({'|'.join(sorted(_DOTTED, key=len, reverse=True))})\.(?![\w]|\.\w)")
_LATIN = re.compile(
    r"(?<![\w.])(Apt(?=\s(?:number\s)?\d)|e\.\s?g\.|i\.\s?e\.|a\.k\.a\.|a/c\b|et al\.|P\.S\.|p\.s\.|n\.b\.|N\.B\.|q\.v\.|c\.\s(?=\d{3,4}\b)|pp(?=\d)|[Nn]o\s(?=\d{1,4}(?:\s(?:on|in|seed|fan|spot|pick|hit|song|team|player|priority|reason|choice)\b|[.,;:!?)]|$))|R\.I\.P\.|Ph\.?\s?D\b\.?|M\.D\.|w/o(?![\w/])|w/out\b|w/(?:\s?(?=[a-zA-Z]{2,}|\d)|\s(?=[aAI]\s))|TL;DR\b|YoY\b|QoQ\b|MoM\b|MSc\b|BSc\b|p\.a\.|pcm\b|s/he\b|gov't\b|int'l\b|nat'l\b|dep't\b|feat\.(?=\s)|(?:ft\.|Ft\.(?!\s(?:Worth|Lauderdale|Myers|Collins|Wayne|Knox|Bragg|Hood|Lee|Benning|Smith|Pierce|Sumter|Liberty|Dix|Meade|Belvoir|Sill|Drum|Carson)\b))(?=\s[A-Z][a-z]+\s*(?:[.,;:!?)&]|$|\sand\s[A-Z]))|[nN]o\.(?=\sof\b)|v\.(?=\s[A-Z][a-z])|b/c\b|c/o\b|n/a\b|N/A\b|R&D\b|R&B\b|Q&A\b|B&B\b|AT&T\b|aka\b|No\.\s?(?=\d)|no\.\s?(?=\d)|Nr\.\s?(?=\d)|eg\b|ie\b|&c\.)(,)?"
)
_LATIN_WORDS = {
    "apt": "Apartment", "e.g.": "for example", "i.e.": "that is", "a.k.a.": "also known as", "aka": "also known as", "etal.": "and others", "p.s.": "P S", "n.b.": "N B",
    "q.v.": "which see", "c.": "circa ", "r.i.p.": "R I P", "phd": "P H D", "m.d.": "M D", "w/o": "without", "w/": "with ", "b/c": "because",
    "c/o": "care of", "pp": "pages ", "a/c": "A C", "n/a": "not applicable", "r&d": "R and D", "r&b": "R and B", "q&a": "Q and A", "b&b": "B and B", "at&t": "A T and T",
    "no.": "number ", "nr.": "number ", "w/out": "without", "tl;dr": "T L D R", "yoy": "year over year", "qoq": "quarter over quarter",
    "mom": "month over month", "msc": "M S C", "bsc": "B S C", "p.a.": "per annum", "pcm": "per calendar month", "s/he": "he or she",
    "gov't": "government", "int'l": "international", "nat'l": "national", "dep't": "department", "feat.": "featuring", "ft.": "featuring",
    "v.": "versus", "eg": "for example", "ie": "that is", "&c.": "et cetera",
}  # fmt: skip
_OFFICE = re.compile(r"\b(Sen|Gov|Prof|Gen)\.(?=\s(?:from|of)\s)")
_SENTENCE = re.compile(r"\s+[\"'(]?[A-Z]")
# What none of which is in a text, it has no abbreviation.
TRIGGER = re.compile(
    rf"\b(?:{'|'.join(sorted(_DOTLESS_TITLES))}|St|Dr|Ave|Blvd|Rd|Hwy|Pkwy|aka|eg|ie)\b"
    rf"|\b(?:{'|'.join(sorted({*_TITLES, *_DOTTED}))}|No|no|Nr|al)\.|\.[ ][a-z]|\b[Hh]wy\b|\b(?:gov|int|nat|dep)'[tl]\b"
)


def read_abbreviations(text: str) -> str:
    """`Dr. Smith` → Doctor Smith; `e.g.` → for example. Streets have been read: Elm Dr. is none of the doctors."""
    text = _LATIN.sub(_latin, text)
    text = _TITLE.sub(lambda m: _TITLES[m[1]] if m[0].endswith(".") or m[1] in _DOTLESS_TITLES else m[0], text)
    text = _OFFICE.sub(lambda m: _TITLES[m[1]], text)
    return _DOT.sub(_dotted, text)


def _latin(match: re.Match[str]) -> str:
    key = re.sub(r"\s", "", match[1]).lower()
    if key.replace(".", "") == "phd":
        key, ends = "phd", match[1].endswith(".")
    else:
        ends = match[1].endswith(".") and key in ("etal.", "m.d.", "&c.")
    words = _LATIN_WORDS["no." if key == "no" else key]
    if key == "no." and match.string.startswith(" of", match.end()):
        return "number"
    after = match.string[match.end() :]
    stop = "." if ends and not match[2] and (not after.strip() or _SENTENCE.match(after)) else ""
    return words + stop + (match[2] or "")


def _dotted(match: re.Match[str]) -> str:
    word, before, after = match[1], match.string[: match.start()], match.string[match.end() :]
    if not _is_abbreviation(word, before, after):
        return match[0]
    ends = begins_sentence(after) if word in _AFTER_NAME else not after.strip() or bool(_SENTENCE.match(after))
    words = _DOTTED[word]
    if word in ("incl", "excl") and not re.match(r"\s+\w", after):
        words = f"{word}uded"
    return f"{words}." if ends and word not in _NEVER_LAST else words


def _is_abbreviation(word: str, before: str, after: str) -> bool:
    """Not of a word that ends a sentence: it went on for a sec. Come in."""
    if word in _ONLY_BEFORE_NUMBER:
        return re.match(r"\s*[\dIVX#]", after) is not None
    if word in _ONLY_AFTER_NUMBER:
        return _AMOUNT_BEFORE.search(before) is not None
    if word in _ONLY_BEFORE_NAME:
        return re.match(r"\s+[A-Z]", after) is not None
    if word in _AFTER_NAME:
        return after.startswith(" of ") or _NAME_BEFORE.search(before) is not None
    return True
