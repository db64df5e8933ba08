"""Whether a quantity stands before a noun as an adjective does, in the singular: a sixty watt bulb."""

from __future__ import annotations

import re

_MEASURED = re.compile(
    r"\s(?:ceilings?|screens?|displays?|monitors?|cables?|drives?|bulbs?|pipes?|bags?|bottles?|cans?|lens|lenses|pools?|steaks?|engines?|"
    r"motors?|batter(?:y|ies)|chargers?|adapters?|sprints?|dash|commute|drive|walk|hike|radius|limit|"
    r"nails?|drills?|bolts?|screws?|wheels?|hoses?|pizzas?|boards?|planks?|subs?|tablets?|phones?|laptops?|pots?|pans?|plates?|cakes?|gaps?|"
    r"ladders?|poles?|fences?|boats?|trees?|angles?|turns?|bends?|rotations?)\b"
)  # nouns that a measure says the size of: two point six meter ceilings
DETERMINER = re.compile(r"(?:\b(?:an?|the|this|that|each|every|another|one)\s+)$", re.I)
_NOUN_FOLLOWS = re.compile(
    r"\s+(?!(?:of|in|and|or|per|from|to|at|for|on|is|was|are|were|with|by|away|apart|ago|long|wide|tall|high|deep|more|less|than|each|off|"
    r"after|before|later|as|that|which|it|he|she|they|we|you|when|if|but|so|the|a|an|has|had|have|will|can|above|below|left|right)\b)[a-z]"
)


def is_adjective(match: re.Match[str]) -> bool:
    """a 60W bulb: sixty watt."""
    if _MEASURED.match(match.string, match.end()):
        return True
    return bool(DETERMINER.search(match.string[: match.start()]) and _NOUN_FOLLOWS.match(match.string, match.end()))
