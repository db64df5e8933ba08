"""Draws each dashboard as its queries answer: `PYTHONPATH=tests:. python -m support.telemetry.draw_dashboards`.

Debian's Prometheus answers them over tests/data/carried.yaml, a recording of the chain under load; written are
docs/images/dashboard-*.png. Grafana draws the same queries in its own way; this needs none.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot

from support.telemetry import prometheus, recording, tables

IMAGES = tables.DEPLOY.parent / "docs" / "images"
_COLUMNS = 3
_MOST_LINES = 8


def draw(name: str, panels: dict[tuple[str, str], prometheus.Lines]) -> None:
    """One dashboard."""
    dashboard = json.loads((tables.DEPLOY / "dashboards" / f"{name}.json").read_text())
    rows = -(-len(dashboard["panels"]) // _COLUMNS)
    figure, axes = pyplot.subplots(rows, _COLUMNS, figsize=(15, 2.7 * rows), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for panel, axis in zip(dashboard["panels"], axes.flat, strict=False):
        axis.axis("on")
        axis.set_title(f"{panel['title']} ({panel['fieldConfig']['defaults']['unit']})", fontsize=9, loc="left")
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
        lines = panels[name, panel["title"]]
        for legend, (at_s, values) in list(lines.items())[:_MOST_LINES]:
            axis.plot(at_s, values, linewidth=1, label=legend[:46])
        if not lines:
            axis.text(0.5, 0.5, "no data: there was none of it", ha="center", transform=axis.transAxes, fontsize=8)
        for step in panel["fieldConfig"]["defaults"].get("thresholds", {}).get("steps", ()):
            if step["value"] and axis.get_ylim()[1] > step["value"] / 4:
                axis.axhline(step["value"], color="red", linewidth=0.8, linestyle="--")
        axis.set_ylim(bottom=0)
        if lines:
            axis.legend(fontsize=6, loc="upper left", framealpha=0.6)
    figure.suptitle(f"{dashboard['title']}: seconds of the recording", fontsize=10)
    figure.tight_layout(rect=(0, 0, 1, 0.985))
    figure.savefig(IMAGES / f"dashboard-{name}.png", dpi=70)
    pyplot.close(figure)


async def panels() -> dict[tuple[str, str], prometheus.Lines]:
    run, series = recording.load(tables.DEPLOY.parent / "tests/data/carried.yaml")
    with tempfile.TemporaryDirectory() as folder:
        async with prometheus.Replayed(Path(folder), series, run["every_s"]) as replayed:
            return replayed.panels


def main() -> None:
    found = asyncio.run(panels())
    for name in sorted({name for name, _ in found}):
        draw(name, found)


if __name__ == "__main__":
    main()
