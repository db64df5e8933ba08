"""Points as Markdown for people and JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from gateway.cli.bench.plan import Plan
from gateway.cli.bench.stats import Point, Spread
from gateway.cli.terminal import plain

_LATE_S = 0.05  # a load tool that comes later than this says so


def markdown(plans: Sequence[Plan], points: Sequence[Point], facts: dict[str, Any]) -> str:
    """facts: what else a reader must know, such as address and bundle; printed as they are."""
    plan = plans[0]
    unit = "utterances/s" if plan.rate_hz is not None else "streams"
    lines = [f"# Load on {facts.get('address', 'a gateway')}", ""]
    lines += [f"- {name}: {value}" for name, value in facts.items() if name != "address"]
    lines += [f"- load: {_describe(plan)}", ""]
    lines += _table(
        [
            unit,
            "utterances",
            "errors",
            "first audio p50",
            "p95",
            "p99 (ms)",
            "audible p50",
            "p95",
            "p99 (ms)",
            "gap p50",
            "p95",
            "p99 (ms)",
            "RTF p50",
            "p95",
            "p99",
            f"buffer underrun ({plan.buffer_s * 1000:g} ms buffer)",
            "audio s/s",
            "bytes",
        ],
        [_row(point) for point in points],
    )
    for point in points:
        lines += _details(point, unit)
    return plain("\n".join(lines).rstrip()) + "\n"


def to_json(plans: Sequence[Plan], points: Sequence[Point], facts: dict[str, Any]) -> str:
    """Times in seconds."""
    both = [{"plan": asdict(plan), **point.to_json()} for plan, point in zip(plans, points, strict=False)]
    return json.dumps({**facts, "points": both}, indent=2) + "\n"


def _describe(plan: Plan) -> str:
    length = (
        f"{plan.audio_s:g} s at most each"
        if plan.audio_s is not None
        else f"cut at {plan.ms_per_character:g} ms a character"
    )
    loop = (
        "open loop (Poisson), latencies from the intended arrival"
        if plan.rate_hz is not None
        else ("closed loop, the next utterance when the last is " + ("heard out" if plan.listens else "received"))
    )
    if plan.turns:
        loop = f"conversations of {plan.turns} turns, heard out, {plan.pause_s:g} s between two"
    if plan.prompt_s:
        loop += f", a voice prompt of {plan.prompt_s:g} s, " + ("one for all" if plan.shares_prompt else "each its own")
    warmup = f", the first {plan.warmup_s:g} s not measured" if plan.warmup_s else ""
    return f"{loop}; new utterances for {plan.duration_s:g} s{warmup}; sentences of a novel, {length}"


def _row(point: Point) -> list[str]:
    added_up = f"**{point.miscounted} wrong**" if point.miscounted else "all right"
    partial = "" if point.is_complete else " (stopped early)"
    return [
        point.label + partial,
        str(point.ok),
        str(sum(point.errors.values())),
        *_cells(point.first_audio_s, 1000),
        *_cells(point.first_audible_s, 1000),
        *_cells(point.gap_s, 1000),
        *_cells(point.real_time_factor, 1, 3),
        f"{point.underrun_streams} of {point.measured}",
        f"{point.real_time_streams:.1f}",
        added_up if point.ok + point.miscounted else "–",
    ]


def _details(point: Point, unit: str) -> list[str]:
    lines = [
        "",
        f"## {point.label} {unit}" if unit == "streams" else f"## {point.label}",
        "",
        f"{point.ok} of {point.requests} utterances in {point.wall_s:.1f} s, {point.mean_in_flight:.1f} at once on "
        f"average; {point.audio_s:.1f} s of audio, {point.bytes} bytes; {point.unfinished} cut off by the end"
        + (f", {point.unfinished_underrun} of them after a buffer underrun." if point.unfinished_underrun else "."),
    ]
    if point.underruns:
        lines.append(f"Buffer underruns: {point.underruns}, {point.underrun_s:.2f} s of silence in all.")
    if point.errors:
        lines += [
            "",
            *_table(
                ["status", "utterances", "the first"],
                [
                    [status, str(count), _plain(point.examples.get(status, ""))]
                    for status, count in point.errors.items()
                ],
            ),
        ]
    if point.stage_s:
        total = sum(spread.p50 for spread in point.stage_s.values()) or 1.0
        lines += [
            "",
            *_table(
                ["to first audio", "p50 (ms)", "p95", "p99", "share of p50"],
                [[part, *_cells(spread, 1000), f"{spread.p50 / total:.0%}"] for part, spread in point.stage_s.items()],
            ),
        ]
    if point.turn_s:
        lines += [
            "",
            *_table(
                ["turn", "turns", "first audio p50", "p95", "p99 (ms)"],
                [[str(turn), str(spread.count), *_cells(spread, 1000)] for turn, spread in point.turn_s.items()],
            ),
        ]
    if point.trace_s:
        lines += [
            "",
            *_table(
                [f"in {point.traces} traces", "p50 (ms)", "p95", "p99"],
                [[_plain(name), *_cells(spread, 1000)] for name, spread in point.trace_s.items()],
            ),
        ]
    lag = point.client_lag_s
    if lag is not None and lag.p95 > _LATE_S:
        lines += [
            "",
            f"The load tool itself came late: its loops by up to {lag.most * 1000:.0f} ms "
            f"(p95 of half seconds {lag.p95 * 1000:.0f}) in {point.processes} processes; latencies are "
            "too high by about that. More --processes, or another machine, help.",
        ]
    return lines


def _cells(spread: Spread | None, times: float, digits: int = 1) -> list[str]:
    if spread is None:
        return ["–"] * 3
    return [f"{value * times:.{digits}f}" for value in (spread.p50, spread.p95, spread.p99)]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table whose columns also line up as plain text."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in [head, *rows]
    ]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]


def _plain(text: str) -> str:
    return " ".join(text.replace("|", "/").split())[:160]
