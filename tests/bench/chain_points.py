"""The points of a run of bench_chain.py: what is asked for, how long it may take, what counts as carried."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gateway.cli.bench.plan import Plan
from gateway.cli.bench.stats import Point

HEARD_S = 2.0  # who hears nothing for longer waits in some queue, and is not carried
MOST_STREAMS, MOST_RATE_HZ, MOST_S = 100_000, 10_000, 3600  # of a wish
RATE_AUDIO_S = 4.3  # utterances of an open loop, as those of the voice servers that publish such tables
_CLIENTS_S = 4.0  # the callers' processes start, the last traces come in
_SLOWER = 1.1  # a point that takes so much longer than real time is cut off: its listeners have had underruns


@dataclass(frozen=True)
class Wish:
    """streams:seconds[:ramp]: callers at once, until when new utterances begin, over what time callers come.

    Or rate/s:seconds: utterances that begin each second (Poisson), of 4.3 s; `streams` is then what that comes to at once.
    """

    streams: int
    seconds: float
    ramp_s: float = 0.0
    rate_hz: float | None = None

    @classmethod
    def read(cls, text: str) -> Wish:
        """Raises: ValueError."""
        load, *times = text.split(":")
        seconds = float(times[0]) if times else 5.0
        if load.endswith("/s"):
            rate_hz = float(load.removesuffix("/s"))
            if len(times) > 1 or not (0 < rate_hz <= MOST_RATE_HZ and 0 < seconds <= MOST_S):
                raise ValueError(f"{text}: no point of load")
            return cls(math.ceil(rate_hz * RATE_AUDIO_S), seconds, rate_hz=rate_hz)
        wish = cls(int(load), seconds, float(times[1]) if times[1:] else min(4.0, seconds / 2))
        # Who would come after the last new utterance never speaks. Written so that NaN fails too.
        if len(times) > 2 or not (
            1 <= wish.streams <= MOST_STREAMS and 0 < seconds <= MOST_S and 0 <= wish.ramp_s <= seconds
        ):
            raise ValueError(f"{text}: no point of load")
        return wish

    @property
    def label(self) -> str:
        """How a table names it."""
        return str(self.streams) if self.rate_hz is None else f"{self.rate_hz:g}/s"

    def __str__(self) -> str:
        return self.label if self.rate_hz is not None else f"{self.streams} streams"

    def of(self, streams: int) -> Wish:
        """The same with another number of callers."""
        return Wish(streams, self.seconds, self.ramp_s)

    def times(self, count: int) -> Wish:
        """So many times this load."""
        if self.rate_hz is None:
            return self.of(self.streams * count)
        return replace(self, streams=self.streams * count, rate_hz=self.rate_hz * count)

    def plan(self, audio_s: float, listens: bool) -> Plan:
        if self.rate_hz is not None:
            # The same arrivals whatever the version that is measured: the seed is the rate's.
            return Plan(rate_hz=self.rate_hz, duration_s=self.seconds, audio_s=RATE_AUDIO_S, seed=round(self.rate_hz))
        return Plan(
            streams=self.streams, duration_s=self.seconds, ramp_up_s=self.ramp_s, audio_s=audio_s, listens=listens,
            connections=4, seed=self.streams,
        )  # fmt: skip

    def longest_s(self, audio_s: float) -> float:
        """After this it is cut off."""
        audio_s = audio_s if self.rate_hz is None else RATE_AUDIO_S
        return _CLIENTS_S + self.seconds + _SLOWER * audio_s

    def expected_s(self, audio_s: float, before: Done | None) -> float:
        """How long it should take; before: a point that was measured already."""
        factor, audio_s = _SLOWER, audio_s if self.rate_hz is None else RATE_AUDIO_S
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
    return max(
        (one.wish.streams for one in done if one.phase == phase and one.wish.rate_hz is None and one.is_carried),
        default=0,
    )


def next_streams(done: Sequence[Done], phase: str, most: int) -> int | None:
    """What to try next to find how many are carried, to a tenth; None when that is known, or `most` are."""
    low = carried(done, phase)
    failed = [
        one.wish.streams for one in done if one.phase == phase and one.wish.rate_hz is None and not one.is_carried
    ]
    high = min((streams for streams in failed if streams > low), default=None)
    if high is None:
        return min(most, math.ceil(1.5 * low)) if 0 < low < most else None
    middle = _round(math.sqrt(max(1, low) * high))
    return middle if low * 1.1 < high and low < middle < high else None


def _round(streams: float) -> int:
    """To two digits: more mean nothing."""
    step = 10 ** max(0, math.floor(math.log10(streams)) - 1)
    return max(1, round(streams / step) * step)
