"""What a conversation has heard so far, as the model's prompt takes it.

A segment is one piece of speech: who spoke, the words, the frames. The voice prompt stays for ever; turns leave,
oldest first, when the model has no room. Knows no gRPC.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gateway.speech.ending import likely_s

END_TOKENS = 1  # an all-zero frame ends the audio of a segment


@dataclass(frozen=True)
class Segment:
    """ids: token ids of the text in its template; empty until the tokenizer has given them. frames: codec frames.

    turn: number of the turn it belongs to; None for another speaker's turn and for the voice prompt.
    first_sample: where in its turn's audio it begins, at the bundle's rate.
    """

    speaker: int
    text: str
    ids: tuple[int, ...]
    frames: Sequence[Any]
    turn: int | None = None
    first_sample: int = 0

    @property
    def tokens(self) -> int:
        """Positions that it takes in the model."""
        return len(self.ids) + len(self.frames) + END_TOKENS

    def with_ids(self, ids: tuple[int, ...]) -> Segment:
        """The same with token ids."""
        return replace(self, ids=ids)


def heard_part(segment: Segment, samples: int, frame_samples: int, frame_rate_hz: float) -> Segment | None:
    """What a listener who heard `samples` of the turn's audio has heard of `segment`; None: nothing of it.

    Whole frames that were heard count. There is no alignment of words to frames, so words are counted in proportion
    to time. The cut segment has no token ids: its text is new.
    """
    frames = min(len(segment.frames), max(0, samples - segment.first_sample) // frame_samples)
    if frames == len(segment.frames):
        return segment
    whole = max(len(segment.frames), math.ceil(likely_s(segment.text) * frame_rate_hz))
    words = [match.end() for match in re.finditer(r"\S+", segment.text)]
    count = len(words) * frames // whole
    if not count:
        return None
    return replace(segment, text=segment.text[: words[count - 1]], ids=(), frames=segment.frames[:frames])


@dataclass
class Context:
    """The voice prompt, then what was said, oldest first."""

    voice: list[Segment] = field(default_factory=list)
    said: list[Segment] = field(default_factory=list)

    def segments(self) -> list[Segment]:
        """All of them, in the prompt's order."""
        return [*self.voice, *self.said]

    @property
    def tokens(self) -> int:
        """Positions that all segments take."""
        return sum(segment.tokens for segment in self.segments())

    def make_room(self, limit: int) -> int:
        """Drop the older half of what was said, by tokens, until all fits `limit`. Returns how many left.

        Halves: each time segments leave, what follows them must be read into the model again, so this must be rare.
        """
        dropped = 0
        while self.said and self.tokens > limit:
            half = sum(segment.tokens for segment in self.said) / 2
            kept = list(self.said)
            while kept and sum(segment.tokens for segment in kept) > half:
                kept.pop(0)
            dropped += len(self.said) - len(kept)
            self.said = kept
        return dropped

    def replace(self, segment: Segment, by: Segment | None) -> None:
        """Put another in a segment's place, or take it out."""
        for index, said in enumerate(self.said):
            if said is segment:
                self.said[index : index + 1] = [] if by is None else [by]
                return

    def heard_of(
        self, turn: int, samples: int, frame_samples: int, frame_rate_hz: float
    ) -> list[tuple[Segment, Segment | None]]:
        """Each segment of `turn`, and what was heard of it by a listener who heard `samples` of the turn's audio."""
        return [
            (segment, heard_part(segment, samples, frame_samples, frame_rate_hz))
            for segment in self.said
            if segment.turn == turn
        ]
