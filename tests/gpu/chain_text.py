"""What a point of bench_chain.py used, in words and as Markdown."""

from __future__ import annotations

from gateway.bench.stats import Point

_BRIEF = {
    "event_loop_lag": "loop lag", "stage_queue": "queue", "stage_chunk": "chunk", "frame_step": "step",
    "backbone_prefill": "prefill", "backbone_queue": "queue",
}  # fmt: skip


def use_text(use: dict) -> str:
    """What one point took, as Markdown."""
    lines = ["", f"## What {use['streams']} streams took, over {use['wall_s']:.1f} s", ""]
    if use["gpu"]:
        lines += ["GPU: " + ", ".join(f"{name} {value:.0f}" for name, value in use["gpu"].items()), ""]
    lines += [f"Load tool: {use['clients_cpu_s'] / use['wall_s']:.2f} cores.", ""]
    lines += ["| process | cores | in its busiest second | GPU % | MB | threads, each in its busiest second |", "|---|---|---|---|---|---|"]
    for name, took in use["processes"].items():
        gpu = "" if took["gpu_percent"] is None else f"{took['gpu_percent']:.0f}"
        threads = ", ".join(f"{thread} {cores:.2f}" for thread, cores in took["peak_threads"].items() if cores >= 0.02)
        lines.append(f"| {name} | {took['cores']:.2f} | {took['peak_cores']:.2f} | {gpu} | {took['memory_mb']:.0f} | {threads} |")
    lines += ["", "| process | histogram (ms; p95 by bucket) | count | mean | p50 ≤ | p95 ≤ | p99 ≤ |", "|---|---|---|---|---|---|---|"]
    for process, page in use["metrics"].items():
        for name, spread in page["histograms"].items():
            times = 1000 if "_seconds" in name else 1
            cells = " | ".join(f"{spread[key] * times:.1f}" for key in ("mean", "p50", "p95", "p99"))
            lines.append(f"| {process} | {name.replace('_seconds', '')} | {spread['count']} | {cells} |")
        if page["counters"]:
            grown = ", ".join(f"{name} {value:g}" for name, value in page["counters"].items())
            lines.append(f"| {process} | {grown} | | | | | |")
    return "\n".join(lines) + "\n"


def brief(point: Point, use: dict) -> str:
    """A point in a few lines, for who watches."""
    first = point.first_audio_s
    lines = [
        f"{point.label} streams: {point.ok} well, {point.errors or 'no errors'}, "
        + (f"first audio p50 {first.p50 * 1000:.0f} p95 {first.p95 * 1000:.0f} ms, " if first else "")
        + f"{point.dry_streams} of {point.measured} ran dry, {point.real_time_streams:.0f} s of audio a second"
        + (f"; GPU {use['gpu']['utilization.gpu']:.0f} %" if use["gpu"] else "")
    ]
    for name, took in use["processes"].items():
        text = f"    {name:<10} peak cores {took['peak_cores']:.2f} (main {took['peak_threads'].get('main', 0):.2f})"
        for key, spread in use["metrics"].get(name, {"histograms": {}})["histograms"].items():
            if short := next((short for part, short in _BRIEF.items() if part in key), None):
                text += f", {short} mean {spread['mean'] * 1000:.1f} p95≤{spread['p95'] * 1000:.0f}"
        lines.append(text)
    return "\n".join(lines)
