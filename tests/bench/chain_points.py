"""The points of a run of bench_chain.py: what is asked for, how long it may take, what counts as carried."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gateway.cli.bench.plan import Plan
from gateway.cli.bench.stats import Point

HEARD_S = 2.0  # who hears nothing for longer waits in some queue, and is not carried
MOST_STREAMS, MOST_S = 100_000, 3600  # of a wish
_CLIENTS_S = 4.0  # the callers' processes start, the last traces come in
_SLOWER = 1.1  # a point that takes so much longer than real time is cut off: its listeners have had underruns


@dataclass(frozen=True)
class Wish:
    """streams:seconds[:ramp]: callers at once, until when new utterances begin, over what time callers come."""

    streams: int
    seconds: float
    ramp_s: float

    @classmethod
    def read(cls, text: str) -> Wish:
        """Raises: ValueError."""
        streams, *times = text.split(":")
        seconds = float(times[0]) if times else 5.0
        wish = cls(int(streams), seconds, float(times[1]) if times[1:] else min(4.0, seconds / 2))
        # Who would come after the last new utterance never speaks. Written so that NaN fails too.
        if len(times) > 2 or not (
            1 <= wish.streams <= MOST_STREAMS and 0 < seconds <= MOST_S and 0 <= wish.ramp_s <= seconds
        ):
            raise ValueError(f"{text}: no point of load")
        return wish

    def of(self, streams: int) -> Wish:
        """The same with another number of callers."""
        return Wish(streams, self.seconds, self.ramp_s)

    def plan(self, audio_s: float, listens: bool) -> Plan:
        return Plan(
            streams=self.streams, duration_s=self.seconds, ramp_up_s=self.ramp_s, audio_s=audio_s, listens=listens,
            connections=4, seed=self.streams,
        )  # fmt: skip

    def longest_s(self, audio_s: float) -> float:
        """After this it is cut off."""
        return _CLIENTS_S + self.seconds + _SLOWER * audio_s

    def expected_s(self, audio_s: float, before: Done | None) -> float:
        """How long it should take; before: a point that was measured already."""
        factor = _SLOWER
        if before is not None and before.point.real_time_factor is not None:
            grown = max(1.0, self.streams / before.wish.streams)
            factor = min(_SLOWER, 1.3 * grown * before.point.real_time_factor.p95)
        return _CLIENTS_S + self.seconds + factor * audio_s


@dataclass(frozen=True)
class Done:
    """A point that was measured. use: as chain_use has it."""

    phase: str
    wish: Wish
    plan: Plan
    point: Point
    use: Mapping[str, Any] = field(default_factory=dict)

    @property
    def underrun(self) -> int:
        """Listeners with underruns, those that were cut off too."""
        return self.point.underrun_streams + self.point.unfinished_underrun

    @property
    def is_carried(self) -> bool:
        """Everybody soon heard something, and then all of it without a pause."""
        point = self.point
        heard = point.first_audio_s is not None and point.first_audio_s.p95 <= HEARD_S
        return heard and point.is_complete and not (self.underrun or point.errors or point.unfinished)


def carried(done: Sequence[Done], phase: str) -> int:
    """Most streams of a phase that were carried, 0 when none were."""
    return max((one.wish.streams for one in done if one.phase == phase and one.is_carried), default=0)


def next_streams(done: Sequence[Done], phase: str, most: int) -> int | None:
    """What to try next to find how many are carried, to a tenth; None when that is known, or `most` are."""
    low = carried(done, phase)
    failed = [one.wish.streams for one in done if one.phase == phase and not one.is_carried]
    high = min((streams for streams in failed if streams > low), default=None)
    if high is None:
        return min(most, math.ceil(1.5 * low)) if 0 < low < most else None
    middle = _round(math.sqrt(max(1, low) * high))
    return middle if low * 1.1 < high and low < middle < high else None


def _round(streams: float) -> int:
    """To two digits: more mean nothing."""
    step = 10 ** max(0, math.floor(math.log10(streams)) - 1)
    return max(1, round(streams / step) * step)
