"""When each chunk of audio came, against when its listener needs it.

Read from the request's own span, where `gateway.timeline` put it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from gateway.cli.trace.spans import Span

_LONGEST_MS = 86_400_000  # a day; an utterance is minutes at most, so what claims more was not measured


@dataclass(frozen=True)
class Chunk:
    """Audio as it went to the caller. Times in seconds since the request's start.

    lead_s: how much the listener had left to play when it came; negative is how long there was nothing.
    """

    arrived_s: float
    position_s: float
    duration_s: float
    lead_s: float

    @property
    def needed_s(self) -> float:
        return self.arrived_s + self.lead_s

    @property
    def end_s(self) -> float:
        """Where in the audio it ends."""
        return self.position_s + self.duration_s

    @property
    def late(self) -> bool:
        return self.lead_s < 0


@dataclass(frozen=True)
class PlaybackTimeline:
    """Chunks in order. total: how many there were; more than `chunks` when some are not in the trace."""

    chunks: tuple[Chunk, ...]
    total: int

    @property
    def audio_s(self) -> float:
        return self.chunks[-1].end_s

    @property
    def underruns(self) -> tuple[Chunk, ...]:
        return tuple(chunk for chunk in self.chunks if chunk.late)

    @property
    def least_lead_s(self) -> float | None:
        """The tightest moment after the first chunk."""
        return min((chunk.lead_s for chunk in self.chunks[1:]), default=None)

    def played(self, until_s: float) -> list[tuple[float, float]]:
        """(time, position in the audio) of the listener, from the first audio to `until_s`; straight between."""
        points: list[tuple[float, float]] = []
        for chunk in self.chunks:
            if chunk.late:
                points.append((chunk.needed_s, chunk.position_s))  # underrun: playback waits
            # Before its buffer is full the listener is at 0.
            points.append((chunk.arrived_s, max(0.0, chunk.position_s - max(chunk.lead_s, 0.0))))
        at_s, position_s = points[-1]
        left_s = min(self.audio_s - position_s, until_s - at_s)
        return [*points, (at_s + left_s, position_s + left_s)] if left_s > 0 else points

    def delivered(self, until_s: float) -> list[tuple[float, float]]:
        """(time, audio given so far): steps; a slope stands for chunks that are not in the trace one by one."""
        first = self.chunks[0]
        points = [(first.arrived_s, 0.0), (first.arrived_s, first.end_s)]
        for before, chunk in pairwise(self.chunks):
            whole = chunk.position_s - before.end_s < 1e-3
            points += [
                (chunk.arrived_s, before.end_s if whole else chunk.position_s),
                (chunk.arrived_s, chunk.end_s),
            ]
        return [*points, (max(until_s, points[-1][0]), points[-1][1])]


def timeline_of(request: Span, zero_ns: int) -> PlaybackTimeline | None:
    """From the events of the gateway's span, those that are possible; None when there is no audio."""
    chunks = []
    for event in request.events:
        given = (event.attributes.get(f"csm.{name}_ms") for name in ("position", "duration", "lead"))
        numbers = [number for number in given if isinstance(number, int | float)]
        if event.name == "audio" and event.time_ns >= zero_ns and len(numbers) == 3 and _are_possible(*numbers):
            chunks.append(Chunk((event.time_ns - zero_ns) / 1e9, *(number / 1e3 for number in numbers)))
    if not chunks:
        return None
    chunks.sort(key=lambda chunk: (chunk.position_s, chunk.arrived_s))
    total = request.attributes.get("csm.chunks")
    return PlaybackTimeline(tuple(chunks), max(total, len(chunks)) if isinstance(total, int) else len(chunks))


def _are_possible(position_ms: float, duration_ms: float, lead_ms: float) -> bool:
    """NaN is within no limits, so it is not."""
    return 0 <= position_ms <= _LONGEST_MS and 0 <= duration_ms <= _LONGEST_MS and abs(lead_ms) <= _LONGEST_MS
