"""What a PromQL query names: enough of the language to hold our own queries to the tables."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_WORDS = {
    "and",
    "or",
    "unless",
    "bool",
    "offset",
    "on",
    "by",
    "without",
    "ignoring",
    "group_left",
    "group_right",
    "inf",
    "nan",
}
_TOKEN = re.compile(
    r"""(?P<matchers>\{(?:[^{}"]|"(?:[^"\\]|\\.)*")*\})
      | (?P<string>"(?:[^"\\]|\\.)*")
      | (?P<range>\[[^\]]*\])
      | (?P<grouping>\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\))
      | (?P<name>[A-Za-z_:][A-Za-z0-9_:]*)
      | (?P<rest>[^A-Za-z_:{"\[]+?)""",
    re.VERBOSE,
)
_MATCHER = re.compile(r'([A-Za-z_]\w*)\s*(=~|!~|!=|=)\s*"((?:[^"\\]|\\.)*)"')


@dataclass
class Query:
    """selectors: (series, [(label, operator, value)]). grouping: labels of `by`, `on` and their like."""

    selectors: list[tuple[str, list[tuple[str, str, str]]]] = field(default_factory=list)
    grouping: set[str] = field(default_factory=set)


def parse(expr: str) -> Query:
    """Raises: ValueError when something is left that is no part of a query."""
    query, place = Query(), 0
    while place < len(expr):
        token = _TOKEN.match(expr, place)
        if token is None:
            raise ValueError(f"cannot read {expr[place:]!r}")
        place = token.end()
        if names := token["grouping"]:
            query.grouping |= set(re.findall(r"[A-Za-z_]\w*", names.split("(", 1)[1]))
        elif token["matchers"]:
            if not query.selectors or query.selectors[-1][1]:
                raise ValueError(f"matchers without a metric: {token['matchers']}")
            query.selectors[-1][1].extend(_MATCHER.findall(token["matchers"]))
        elif (name := token["name"]) and name.lower() not in _WORDS:
            if not re.match(r"\s*(\(|(by|without)\b)", expr[place:]):  # else a function
                query.selectors.append((name, []))
    return query
