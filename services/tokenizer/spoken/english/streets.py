"""Addresses of houses: streets, their directions, and states behind a town."""

from __future__ import annotations

import re

_STREET = re.compile(
    r"(?<=[a-zA-Z\d] )St\b\.?(?=\s*(?:[,;:!?)]|$|\s(?:and|in|at|is|was|near|to|by|or|on|for|from|NW|NE|SW|SE|Apt|Suite|#)|\s[A-Z][a-z]+,))|(?<=\d(?:st|nd|rd|th) )St\b\.?|(?<=[a-z] )St\.(?=\s[a-z])"
)
_SAINT = re.compile(r"\bSt\b\.?(?=\s+[A-Z][a-z])")
_DRIVE = re.compile(r"(?<=[a-z] )Dr\b\.?(?=\s*(?:[,;:!?)]|$|\s(?:and|in|at|is|was|near|to|by|or|on|NW|NE|SW|SE)\b))")
_STREET_DOTLESS = re.compile(
    r"(?<=[a-z] )(Ave|Blvd|Rd|Hwy|Pkwy)\b(?=\s*(?:[,;:!?)]|$|\s(?:and|in|at|is|was|near|to|by|or|on|NW|NE|SW|SE)\b))"
)
_DIRECTION = re.compile(
    r"(?<=\d )([NSEW])\b\.?(?=\s(?:\d{1,3}(?:st|nd|rd|th)\b|[A-Z][a-z]+\s(?:St|Ave|Avenue|Blvd|Rd|Dr|Ln|Street|Road|Drive|Lane|Boulevard)\b))"
)
_DIRECTIONS = {"N": "North", "S": "South", "E": "East", "W": "West"}
_STATES = {
    "Ala": "Alabama", "Ark": "Arkansas", "Colo": "Colorado", "Del": "Delaware", "Ga": "Georgia", "Ind": "Indiana", "Kan": "Kansas",
    "Ky": "Kentucky", "La": "Louisiana", "Md": "Maryland", "Mich": "Michigan", "Minn": "Minnesota", "Miss": "Mississippi", "Mo": "Missouri",
    "Mont": "Montana", "Neb": "Nebraska", "Nev": "Nevada", "Okla": "Oklahoma", "Ore": "Oregon", "Pa": "Pennsylvania", "Tenn": "Tennessee",
    "Va": "Virginia", "Vt": "Vermont", "Wis": "Wisconsin", "Wyo": "Wyoming",
}  # fmt: skip
_STATE = re.compile(rf"(?<=[a-z], )({'|'.join(_STATES)})\.(?!\w)")
_HIGHWAY = re.compile(r"\bHwy\b\.?(?=\s\d)")
_REGION = re.compile(
    r"(?<![\w.])([NSEW])\.\s(?=(?:Korea|Africa|America|Carolina|Dakota|Virginia|Ireland|Europe|Asia)\b)"
)
_FLOOR = re.compile(r"(?<=\d(?:st|nd|rd|th) )[Ff]l\.(?=[\s,]|$)")
_HIGHWAYS = {"Ave": "Avenue", "Blvd": "Boulevard", "Rd": "Road", "Hwy": "Highway", "Pkwy": "Parkway"}
_SENTENCE = re.compile(r"\s+[\"'(]?[A-Z]")


def read_streets(text: str) -> str:
    """`48 W. Oak St.` → 48 West Oak Street; `St. Louis, Mo.` → Saint Louis, Missouri."""
    text = _REGION.sub(lambda m: f"{_DIRECTIONS[m[1]]} ", text)
    text = _FLOOR.sub("floor", text)
    text = _DIRECTION.sub(lambda m: _DIRECTIONS[m[1]], text)
    text = _STREET.sub(lambda m: "Street" + _stop(m), text)
    text = _SAINT.sub("Saint", text)
    text = _DRIVE.sub(lambda m: "Drive" + _stop(m), text)
    text = _STATE.sub(lambda m: _STATES[m[1]] + _stop(m), text)
    text = _HIGHWAY.sub("Highway", text)
    return _STREET_DOTLESS.sub(lambda m: _HIGHWAYS[m[1]], text)


def _stop(match: re.Match[str]) -> str:
    """A full stop that ends the sentence too."""
    after = match.string[match.end() :]
    return "." if match[0].endswith(".") and (not after.strip() or _SENTENCE.match(after)) else ""
