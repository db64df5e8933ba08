"""What a search says. Knows no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from services.watermark.evidence import UNREACHABLE


@dataclass(frozen=True)
class Mark:
    """A stretch that carries the key.

    start_s, end_s: to about a message's length. message_s: where its first whole message begins.
    confidence: mean probability of the key's symbols there. threshold: from where that is proof.
    key: which of the keys that were looked for.
    """

    channel: int
    start_s: float
    end_s: float
    message_s: float
    confidence: float
    threshold: float
    speed: float = 1.0
    keeps_pitch: bool = False
    key: int = 0


@dataclass
class Findings:
    """What a search of one piece says. Where no mark is found: the best that was read, and what it spells."""

    marks: list[Mark] = field(default_factory=list)
    confidence: float = 0.0
    threshold: float = UNREACHABLE
    decoded_key: bytes | None = None
    clearness: float = -1.0  # how clearly it spells some message; -1 when nothing is described
    other_key: bool = False  # a key is there that is similar to the one looked for
    audible_messages: int = 0
