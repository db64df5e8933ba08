"""Records to numbers."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from gateway.cli.bench.fleet import Outcome
from gateway.cli.bench.record import ACCOUNTING, OK, UNFINISHED, Record
from gateway.cli.trace.spans import Span
from gateway.cli.trace.waterfall import bars_of_trace
from gateway.stage_names import STAGES


@dataclass(frozen=True)
class Spread:
    """How some values lie. Percentiles are values that were seen (nearest rank), never between two."""

    count: int
    p50: float
    p95: float
    p99: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread | None:
        """None when there are none."""
        found = np.fromiter(values, float)
        if not len(found):
            return None
        ranks = np.percentile(found, [50, 95, 99, 100], method="inverted_cdf")
        return cls(len(found), *(float(rank) for rank in ranks))


@dataclass(frozen=True)
class Point:
    """One load of a bench. Latencies count utterances that went well and began after the warm-up.

    errors: status → how many. examples: status → the first one's text. unfinished: cut off by an early stop;
    unfinished_underrun: those of them that had a buffer underrun before.
    real_time_streams: seconds of audio received in a second, so: listeners kept supplied. All of the point counts, also
        while callers come and go. full_load_streams: the same of the time in which all callers of a closed loop are
        there, from the end of the ramp until no new utterance begins; None: there is no such time.
    underrun_streams, underruns, underrun_s: listeners with a buffer underrun; number of underruns; their silence in all.
    first_audible_s: to the first sample that is not silence. turn_s: turn of a conversation → its first audio.
    stage_s: part of the way to first audio → its time, from the gateway's own clock; `way to the caller` is
    what the caller waited beyond that. trace_s: row of the waterfall → its length, from the traces at hand.
    client_lag_s: how late the load tool's own loops came, at worst in each half second.
    """

    load: float
    label: str
    is_complete: bool
    wall_s: float
    processes: int
    requests: int
    ok: int
    errors: dict[str, int]
    examples: dict[str, str]
    unfinished: int
    unfinished_underrun: int
    mean_in_flight: float
    audio_s: float
    real_time_streams: float
    bytes: int
    samples_checked: int
    miscounted: int
    measured: int
    first_audio_s: Spread | None
    first_audible_s: Spread | None
    gap_s: Spread | None
    real_time_factor: Spread | None
    underrun_streams: int
    underruns: int
    underrun_s: float
    stage_s: dict[str, Spread] = field(default_factory=dict)
    turn_s: dict[int, Spread] = field(default_factory=dict)
    traces: int = 0
    trace_s: dict[str, Spread] = field(default_factory=dict)
    client_lag_s: Spread | None = None
    full_load_streams: float | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def point(outcome: Outcome, traces: Sequence[list[Span]] = ()) -> Point:
    """traces: the whole ones at hand, of any of the utterances."""
    records, plan = outcome.records, outcome.plan
    done = [record for record in records if record.status == OK]
    measured = [record for record in done if record.intended_s >= plan.warmup_s]
    spoken = [record for record in measured if record.first_audio_s is not None]
    errors = Counter(record.status for record in records if record.status not in (OK, UNFINISHED))
    wall_s = max(outcome.wall_s, 1e-9)
    audio_s = sum(record.audio_s for record in records)
    return Point(
        load=plan.load,
        label=plan.label,
        is_complete=outcome.is_complete,
        wall_s=outcome.wall_s,
        processes=outcome.processes,
        requests=len(records),
        ok=len(done),
        errors=dict(errors.most_common()),
        examples={record.status: record.problem for record in reversed(records) if record.status in errors},
        unfinished=sum(record.status == UNFINISHED for record in records),
        unfinished_underrun=sum(record.status == UNFINISHED and record.underruns > 0 for record in records),
        mean_in_flight=sum(record.took_s for record in records) / wall_s,
        audio_s=audio_s,
        real_time_streams=audio_s / wall_s,
        bytes=sum(record.bytes for record in records),
        samples_checked=sum(record.bytes for record in done) // 2,
        miscounted=errors[ACCOUNTING],
        measured=len(measured),
        first_audio_s=Spread.of(record.first_audio_s for record in spoken if record.first_audio_s is not None),
        first_audible_s=Spread.of(record.first_audible_s for record in spoken if record.first_audible_s is not None),
        turn_s=_turns(spoken),
        gap_s=Spread.of(gap for record in measured for gap in record.gaps_s),
        real_time_factor=Spread.of(record.took_s / record.audio_s for record in spoken),
        underrun_streams=sum(record.underruns > 0 for record in measured),
        underruns=sum(record.underruns for record in measured),
        underrun_s=sum(record.underrun_s for record in measured),
        stage_s=_stages(spoken),
        traces=len(traces),
        trace_s=_rows(traces),
        client_lag_s=Spread.of(outcome.lag_s),
        full_load_streams=_full_load_streams(outcome),
    )


def _full_load_streams(outcome: Outcome) -> float | None:
    if (span_s := outcome.plan.full_load_s) is None:
        return None
    begin_s, end_s = span_s
    length_s = (end_s if outcome.is_complete else min(end_s, outcome.wall_s)) - begin_s
    return sum(record.full_load_audio_s for record in outcome.records) / length_s if length_s > 0 else None


def _stages(records: Sequence[Record]) -> dict[str, Spread]:
    """The way to first audio, cut where each stage gave its first output."""
    parts: dict[str, list[float]] = defaultdict(list)
    for record in records:
        last_s = 0.0
        for stage in STAGES:
            if stage in record.stages:
                parts[stage].append(record.stages[stage] - last_s)
                last_s = record.stages[stage]
        if record.first_audio_s is not None and record.server_first_audio_s is not None:
            parts["way to the caller"].append(record.first_audio_s - record.server_first_audio_s)
    return {part: spread for part, values in parts.items() if (spread := Spread.of(values))}


def _turns(records: Sequence[Record]) -> dict[int, Spread]:
    """First audio by turn, of conversations."""
    turns: dict[int, list[float]] = defaultdict(list)
    for record in records:
        if record.turn and record.first_audio_s is not None:
            turns[record.turn].append(record.first_audio_s)
    return {turn: spread for turn, values in sorted(turns.items()) if (spread := Spread.of(values))}


def _rows(traces: Sequence[list[Span]]) -> dict[str, Spread]:
    """Lengths of the waterfall's rows over all traces: a stage's call, and its own spans in it."""
    lengths: dict[str, list[float]] = defaultdict(list)
    for spans in traces:
        for bar in bars_of_trace(spans):
            name = bar.label if bar.depth < 2 else f"{bar.stage}: {bar.label}"
            lengths[name].append(bar.end_s - bar.start_s)
            if bar.depth == 1 and bar.first_output_s is not None:
                lengths[f"{bar.stage}: to its first output"].append(bar.first_output_s - bar.start_s)
    return {name: spread for name, values in lengths.items() if (spread := Spread.of(values))}
