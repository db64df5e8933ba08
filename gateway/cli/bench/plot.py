"""A sweep as a picture: latency and buffer underruns over the load. Needs matplotlib (extra `bench`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gateway.cli.bench.stats import Point

MISSING = "no plot: matplotlib is not installed (pip install 'csm-serve[bench]')"


class NoPlot(Exception):
    """matplotlib is missing."""


def plot(points: Sequence[Point], path: Path, *, is_rate: bool, buffer_s: float) -> None:
    """Write a PNG. Raises: NoPlot."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogFormatter
    except ImportError as error:
        raise NoPlot(MISSING) from error
    figure = Figure(figsize=(8, 7), layout="constrained")
    FigureCanvasAgg(figure)
    latency, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    loads = [point.load for point in points]
    for name in ("p50", "p95", "p99"):
        spreads = [point.first_audio_s for point in points]
        values = [float("nan") if spread is None else getattr(spread, name) * 1000 for spread in spreads]
        latency.plot(loads, values, marker="o", label=name)
    latency.set_ylabel("time to first audio (ms)")
    latency.set_yscale("log")
    latency.yaxis.set_major_formatter("{x:g}")
    latency.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))  # 20, 50, … where there is room
    latency.legend()
    shares = [100 * point.underrun_streams / max(1, point.measured) for point in points]
    failures = [100 * sum(point.errors.values()) / max(1, point.requests) for point in points]
    lower.plot(loads, shares, marker="o", color="tab:red", label=f"buffer underrun ({buffer_s * 1000:g} ms buffer)")
    lower.plot(loads, failures, marker="x", color="tab:gray", label="failed")
    lower.set_ylabel("utterances (%)")
    lower.set_ylim(bottom=-2, top=102)
    lower.legend()
    lower.set_xlabel("utterances begun in a second" if is_rate else "streams at once")
    if max(loads) > 20 * max(min(loads), 1e-9):
        lower.set_xscale("log", base=2)
    lower.set_xticks(loads, [f"{load:g}" for load in loads])
    lower.minorticks_off()
    for axes in (latency, lower):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110, format="png")
