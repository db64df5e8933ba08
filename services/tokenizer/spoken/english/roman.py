"""Roman numerals, after the nouns and names that have them."""

from __future__ import annotations

import re

from services.tokenizer.spoken.english.numbers import cardinal, ordinal, year

_NUMERAL = r"(M{0,3}(?:CM|CD|D?C{0,3})(?:XC|XL|L?X{0,3})(?:IX|IV|V?I{0,3}))"
_NOUNS = (
    "Chapter|Part|Act|Scene|Book|Volume|Vol\\.?|Section|Article|Appendix|Phase|Type|Class|Stage|Level|Grade|Title|Table|Figure|Fig\\.?|"
    "Schedule|Annex|Unit|Module|Lesson|Verse|Canto|Episode|Season|Division|Group|Category|Generation|Gen|Tier|Mark|Mk\\.?|Apollo|Gemini|"
    "World War|War|Super Bowl|Bowl|WrestleMania|Olympiad|Final Fantasy|Rocky|Rambo|Star Wars|Episode|Symphony|Sonata|No\\.|Opus|Vatican|"
    "Saturn|Titan|Pillar|Point|Step|Round|Game|Day|Exhibit|Amendment|Clause|Paragraph|Theorem|Lemma|Case|Factor|Element|Plate|Panel|Zone|"
    "Sector|Block|Corps|Legion|Dynasty|Model|Series|Edition|Version|Form|Room|Civilization|Diablo|Warcraft|Street Fighter|Dragon Quest|"
    "Grand Theft Auto|GTA|Age of Empires|Call of Duty|SALT|START|Title|Formula|Quadrant|Quarter|Term|Semester|Calculus|Physics|Algebra|Biology|"
    "Chemistry|Economics|History|English|Spanish|Latin|Trimester|Meditation|Psalm|Question|Problem|Exercise|Test|Trial|Study|Experiment"
)
_AFTER_NOUN = re.compile(
    rf"\b((?:{_NOUNS})s?|(?:{_NOUNS.lower()})s?)(\s+){_NUMERAL}(?![\w'’]|\.\w|-[a-z])((?:\s?[-–]\s?|\s(?:and|to|or|through)\s|,\s){_NUMERAL}\b)?"
)
_NAMES = (
    "Henry|Louis|George|Edward|Richard|Charles|James|William|Elizabeth|Mary|John|Paul|John Paul|Pius|Benedict|Gregory|Leo|Clement|Innocent|"
    "Urban|Francis|Frederick|Frederik|Wilhelm|Friedrich|Philip|Felipe|Carlos|Alfonso|Ferdinand|Joseph|Leopold|Napoleon|Nicholas|Alexander|"
    "Peter|Catherine|Ivan|Gustav|Christian|Haakon|Harald|Olaf|Ramses|Ramesses|Rameses|Thutmose|Amenhotep|Seti|Ptolemy|Cleopatra|Darius|Xerxes|Cyrus|"
    "Mehmed|Murad|Selim|Suleiman|Abdul Hamid|Victor Emmanuel|Umberto|Pedro|Manuel|Sigismund|Casimir|Otto|Rudolf|Maximilian|Constantine|"
    "Justinian|Theodosius|Stephen|Robert|David|Malcolm|Kenneth|Matthew|Rama|Albert|Rainier|Mohammed|Hassan|Hussein|Abdullah|Juan Carlos|"
    "Margrethe|Beatrix|Willem|Sixtus|Julius|Boniface|Celestine|Adrian|Callixtus|Tutankhamun|Menelik|Pepin|Attalus|Antiochus|Mithridates|Philippe|Thomas"
)
_REGNAL = re.compile(rf"\b({_NAMES})\s+{_NUMERAL}(?![\w]|\.\w)")
_TITLED = re.compile(
    rf"\b((?:King|Queen|Pope|Emperor|Empress|Tsar|Czar|Sultan|Pharaoh|Prince|Duke)\s+[A-Z][a-z]+)\s+{_NUMERAL}(?![\w]|\.\w)"
)
_GENERATION = re.compile(r"\b([A-Z][a-z]+\s+(?:[A-Z]\.?\s+)?[A-Z][a-z]+),?\s+(III|II|IV)(?![\w])")
_PRODUCT = re.compile(r"\b([A-Z]\w+)\s+(II|III|IV|VI{1,3}|IX|XI{1,3}|XIV|XV|XVI)(?![\w])")
_ALONE = re.compile(r"(?<![\w-])(II|III|VII|VIII|XII|XIII|XIV|XVI|XVII|XVIII|XIX|XXI|XXII|XXIV)(?![\w-]|\.\w)")
_CENTURY = re.compile(rf"\b(?:the\s+)?{_NUMERAL}(?:th)?\s+(century|centuries)\b")
_VALUES = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100, "D": 500, "M": 1000}
_SMALL = re.compile(rf"\b((?:{_NOUNS})s?\s)(i{{2,3}}|iv|vi{{1,3}}|ix|xi{{1,3}})(?![\w'’-])", re.I)
_YEAR = re.compile(r"(?<![\w-])(?=\w{4})(M{1,2}(?:CM|CD|D?C{0,3})(?:XC|XL|L?X{0,3})(?:IX|IV|V?I{0,3}))(?![\w-])")
_TRIGGER = re.compile(r"\b(?:[IVXLCDM]+(?:th)?|i[iv]i?|vi+|ix|xi+)(?!\w)")


def read_roman(text: str) -> str:
    """`Chapter IV` → Chapter four; `Henry VIII` → Henry the eighth."""
    if not _TRIGGER.search(text):
        return text
    text = _YEAR.sub(lambda m: year(_value(m[1])), text)
    text = _SMALL.sub(lambda m: m[1] + cardinal(_value(m[2].upper())) if m[2].islower() else m[0], text)
    text = _REGNAL.sub(_regnal, text)
    text = _TITLED.sub(_regnal, text)
    text = _AFTER_NOUN.sub(_after_noun, text)
    text = _CENTURY.sub(
        lambda m: f"the {ordinal(_value(m[1]))} {m[2]}" if len(m[1]) > 1 or m[1] in ("V", "X") else m[0], text
    )
    text = _GENERATION.sub(
        lambda m: f"{m[1]} the {ordinal(_value(m[2]))}" if _is_person(m[1]) else f"{m[1]} {cardinal(_value(m[2]))}",
        text,
    )
    text = _PRODUCT.sub(lambda m: f"{m[1]} {cardinal(_value(m[2]))}", text)
    return _ALONE.sub(lambda m: cardinal(_value(m[1])), text)


def _regnal(match: re.Match[str]) -> str:
    if not _is_numeral(match[2]) or match[0].startswith("Malcolm X"):
        return match[0]
    return f"{match[1]} the {ordinal(_value(match[2]))}"


def _is_numeral(text: str) -> bool:
    """C, D, L and M alone are letters: Appendix C, John D."""
    return len(text) > 1 or text in ("I", "V", "X")


def _after_noun(match: re.Match[str]) -> str:
    noun, blank, first, rest, second = match.groups()
    if (
        not first
        or not _is_numeral(first)
        or (first == "I" and not noun[0].isupper() and re.match(r"\s+[a-z]", match.string[match.end() :]))
    ):
        return match[0]  # in part I agree
    if first == "I" and re.match(
        r"\s+(?:[A-Z]\b|am|was|have|had|think|will|would|can|could|did|do|know|saw|went|like|love|want|need)\b",
        match.string[match.end() :],
    ):
        return match[0]
    words = f"{noun}{blank}{cardinal(_value(first))}"
    if rest and second:
        word = re.search(r"and|to|or|through|,", rest)
        joint = {",": ", "}.get(word[0], f" {word[0]} ") if word else " to "
        words += joint + cardinal(_value(second))
    elif rest:
        words += rest
    return words


_FIRST_NAMES = frozenset(
    """James John Robert William Richard Charles Thomas George Henry Edward Joseph David Michael Daniel Matthew Anthony Mark Paul Steven
    Andrew Kenneth Kevin Brian Ronald Timothy Jason Jeffrey Ryan Jacob Gary Nicholas Eric Jonathan Stephen Larry Justin Scott Brandon
    Benjamin Samuel Gregory Frank Alexander Raymond Patrick Jack Dennis Jerry Harry Walter Arthur Albert Fred Frederick Martin Theodore
    Cornelius Alfred Louis Peter Sammy Hank Ken Davis Griffin Robin Loudon Thurston""".split()
)


def _is_person(name: str) -> bool:
    return name.split()[0] in _FIRST_NAMES


def _value(numeral: str) -> str:
    total = 0
    for char, after in zip(numeral, [*numeral[1:], ""], strict=True):
        value = _VALUES[char]
        total += -value if after and _VALUES[after] > value else value
    return str(total)
