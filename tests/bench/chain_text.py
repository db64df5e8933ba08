"""What points of bench_chain.py came to and used, in words and as Markdown."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from chain_points import HEARD_S, Done, carried

_BRIEF = {
    "event_loop_lag": "loop lag", "stage_queue": "queue", "stage_chunk": "chunk", "frame_step": "step",
    "backbone_prefill": "prefill", "backbone_queue": "queue",
}  # fmt: skip
_METHODS = ("Tokenize", "Generate", "Decode", "Embed", "StreamSynthesize")
_THREAD_CORES, _GPU_PERCENT, _WAIT_S = 0.85, 95.0, 0.08


def table(done: Sequence[Done]) -> list[str]:
    """A row for each point."""
    head = [
        "phase", "streams", "utterances", "errors", "cut off", "first audio p50", "p95 (ms)", "gap p95 (ms)", "underruns",
        "RTF p95", "audio s/s", "at full load", "GPU %", "new streams", "carried",
    ]  # fmt: skip
    rows = [_row(one) for one in done]
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in [head, *rows]
    ]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]


def _row(one: Done) -> list[str]:
    point, first = one.point, one.point.first_audio_s
    return [
        one.phase, one.wish.label, str(point.ok), str(sum(point.errors.values())), str(point.unfinished),
        f"{first.p50 * 1000:.0f}" if first else "–", f"{first.p95 * 1000:.0f}" if first else "–",
        f"{point.gap_s.p95 * 1000:.0f}" if point.gap_s else "–", f"{one.underrun} of {point.ok + point.unfinished}",
        f"{point.real_time_factor.p95:.2f}" if point.real_time_factor else "–", f"{point.real_time_streams:.0f}",
        f"{point.full_load_streams:.0f}" if point.full_load_streams is not None else "–",
        " / ".join(f"{told['utilization.gpu']:.0f}" for told in one.use["gpus"].values()) or "–",
        spread_text(one.use) or "–", "yes" if one.is_carried else "no",
    ]  # fmt: skip


def spread(use: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """Stage → its processes → calls of utterances that ended in the time. Left out: stages of one process, or without calls."""
    calls: dict[str, dict[str, int]] = {}
    for process, page in use["metrics"].items():
        own = sum(
            told["count"] for name, told in page["histograms"].items()
            if name.startswith("rpc_server_call_duration") and any(f"/{method}," in name for method in _METHODS)
        )  # fmt: skip
        calls.setdefault(process.rstrip("-0123456789"), {})[process] = own
    return {stage.removeprefix("one-"): of for stage, of in calls.items() if len(of) > 1 and any(of.values())}


def spread_text(use: Mapping[str, Any]) -> str:
    return ", ".join(f"{stage} {' / '.join(str(count) for count in of.values())}" for stage, of in spread(use).items())


def limits(done: Done) -> list[str]:
    """What was at or near the most it can do, or made others wait: a thread, a GPU, a stage's queue, a door."""
    use, found = done.use, []
    way = done.point.stage_s.get("way to the caller")
    if way and way.p95 >= _WAIT_S:  # a busy server of grpc.aio takes in one call in about five turns of its loop
        found.append(f"gateways: 95 of 100 calls were taken in after up to {way.p95 * 1000:.0f} ms")
    for name, took in use["processes"].items():
        thread, cores = next(iter(took["peak_threads"].items()), ("", 0.0))
        if cores >= _THREAD_CORES:
            found.append(
                f"{name}: thread {thread} had {cores:.2f} of a core in its busiest second ({took['threads'].get(thread, 0):.2f} on average)"
            )
    for index, told in use["gpus"].items():
        if told["utilization.gpu"] >= _GPU_PERCENT:
            found.append(f"GPU {index}: busy {told['utilization.gpu']:.0f} % of the time")
    for name, page in use["metrics"].items():
        for key, told in page["histograms"].items():
            if ("stage_queue" in key or "backbone_queue" in key) and told["mean"] >= _WAIT_S:
                found.append(f"{name}: waited {told['mean'] * 1000:.0f} ms for a turn on average")
            if "event_loop_lag" in key and told["p95"] > _WAIT_S:
                found.append(f"{name}: event loop late by up to {told['p95'] * 1000:.0f} ms (p95)")
    return found


def ratio_text(done: Sequence[Done]) -> str:
    """How many streams each phase carried and, of two phases, how the second compares with the first."""
    phases = list(dict.fromkeys(one.phase for one in done))
    streams = [carried(done, phase) for phase in phases]
    audio = [max(one.point.real_time_streams for one in done if one.phase == phase) for phase in phases]
    lines = [
        f"{phase}: {count or 'no'} streams carried (no underrun, no error, no listener cut off, first audio p95 within {HEARD_S:g} s), at most {most:.0f} s of audio a second."
        for phase, count, most in zip(phases, streams, audio, strict=True)
    ]
    if len(phases) == 2 and streams[0]:
        lines.append(
            f"{phases[1]} : {phases[0]} = {streams[1] / streams[0]:.2f} by streams carried, {audio[1] / audio[0]:.2f} by audio a second."
        )
    lines.append(
        "audio s/s is of the whole point, the coming and going of callers included; at full load: from the end of the "
        "ramp until no new utterance begins."
    )
    return "\n".join(lines)


def use_text(done: Done) -> str:
    """What one point took, as Markdown."""
    use = done.use
    lines = ["", f"## What {done.wish} took ({done.phase}), over {use['wall_s']:.1f} s", ""]
    lines += [f"- at its limit: {told}" for told in limits(done)]
    lines += [
        f"- GPU {index}: " + ", ".join(f"{name} {value:.0f}" for name, value in told.items())
        for index, told in use["gpus"].items()
    ]
    lines += [f"- load tool: {use['clients_cpu_s'] / use['wall_s']:.2f} cores in {done.point.processes} processes", ""]
    lines += [
        "| process | cores | in its busiest second | GPU % | MB | threads, each in its busiest second |",
        "|---|---|---|---|---|---|",
    ]
    for name, took in use["processes"].items():
        gpu = "" if took["gpu_percent"] is None else f"{took['gpu_percent']:.0f}"
        threads = ", ".join(f"{thread} {cores:.2f}" for thread, cores in took["peak_threads"].items() if cores >= 0.02)
        lines.append(
            f"| {name} | {took['cores']:.2f} | {took['peak_cores']:.2f} | {gpu} | {took['memory_mb']:.0f} | {threads} |"
        )
    lines += [
        "",
        "| process | histogram (ms; p95 by bucket) | count | mean | p50 ≤ | p95 ≤ | p99 ≤ |",
        "|---|---|---|---|---|---|---|",
    ]
    for process, page in use["metrics"].items():
        if not any("rpc_duration" in name for name in page["histograms"]):
            continue  # it had nothing to do
        for name, spread in page["histograms"].items():
            times = 1000 if "_seconds" in name else 1
            cells = " | ".join(f"{spread[key] * times:.1f}" for key in ("mean", "p50", "p95", "p99"))
            lines.append(f"| {process} | {name.replace('_seconds', '')} | {spread['count']} | {cells} |")
        if page["counters"]:
            grown = ", ".join(f"{name} {value:g}" for name, value in page["counters"].items())
            lines.append(f"| {process} | {grown} | | | | | |")
    return "\n".join(lines) + "\n"


def brief(done: Done) -> str:
    """A point in a few lines, for who watches."""
    point, use, first = done.point, done.use, done.point.first_audio_s
    lines = [
        f"{done.phase}, {done.wish}: {'carried' if done.is_carried else 'NOT carried'}: {point.ok} well, "
        f"{point.errors or 'no errors'}, {point.unfinished} cut off, "
        + (f"first audio p50 {first.p50 * 1000:.0f} p95 {first.p95 * 1000:.0f} ms, " if first else "")
        + (f"gap p95 {point.gap_s.p95 * 1000:.0f} ms, " if point.gap_s else "")
        + f"{done.underrun} with buffer underruns, {point.real_time_streams:.0f} s of audio a second in {point.wall_s:.1f} s"
        + "".join(f"; GPU {index} {told['utilization.gpu']:.0f} %" for index, told in use["gpus"].items())
        + f"; cores {_cores(use):.1f} of {os.cpu_count()}, of them load tool {use['clients_cpu_s'] / use['wall_s']:.2f}"
    ]
    if text := spread_text(use):
        lines.append(f"    new streams: {text}")
    lines += [f"    first audio by stage, p50 / p95 ms: {_shares(done)}"] if point.stage_s else []
    lines += [f"    at its limit: {told}" for told in limits(done)]
    for name, took in use["processes"].items():
        page = use["metrics"].get(name, {"histograms": {}})["histograms"]
        if name != "collector" and not any("rpc_duration" in key for key in page):
            continue
        gpu = "" if took["gpu_percent"] is None else f", GPU {took['gpu_percent']:.0f} %"
        text = f"    {name:<13} cores {took['cores']:.2f}, peak {took['peak_cores']:.2f} (main {took['peak_threads'].get('main', 0):.2f}){gpu}"
        for key, told in page.items():
            if short := next((short for part, short in _BRIEF.items() if part in key), None):
                text += f", {short} mean {told['mean'] * 1000:.1f} p95≤{told['p95'] * 1000:.0f}"
        lines.append(text)
    return "\n".join(lines)


def _cores(use: Mapping[str, Any]) -> float:
    """All of our processes."""
    return sum(took["cores"] for took in use["processes"].values()) + use["clients_cpu_s"] / use["wall_s"]


def _shares(done: Done) -> str:
    parts = done.point.stage_s
    total = sum(part.p50 for part in parts.values()) or 1.0
    return ", ".join(
        f"{name} {part.p50 * 1000:.0f} / {part.p95 * 1000:.0f} ({part.p50 / total:.0%})" for name, part in parts.items()
    )
