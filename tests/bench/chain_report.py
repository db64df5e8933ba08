"""The files of a run of bench_chain.py."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from chain_points import Done
from chain_text import ratio_text, table, use_text

from gateway.cli.bench import report
from gateway.cli.bench.plot import NoPlot, plot


def write(done: Sequence[Done], facts: Mapping[str, str], gpu_csv: str, out: Path) -> None:
    """All that was measured so far: one table, then each phase in csm bench's own form, then what points used."""
    lines = [
        f"# Load on {facts['address']}",
        "",
        *(f"- {name}: {told}" for name, told in facts.items() if name != "address"),
    ]
    text = "\n".join([*lines, "", *table(done), "", ratio_text(done), ""])
    for phase in _phases(done):
        own = [one for one in done if one.phase == phase]
        text += "\n#" + report.markdown([one.plan for one in own], [one.point for one in own], {"address": phase})
        text += "".join(use_text(one) for one in own)
    _replace(out / "chain.md", text)
    points = [
        {"phase": one.phase, "carried": one.is_carried, "plan": asdict(one.plan), **one.point.to_json(),
         "use": one.use}
        for one in done
    ]  # fmt: skip
    _replace(out / "chain.json", json.dumps({**facts, "points": points}, indent=1) + "\n")
    _replace(out / "gpu.csv", gpu_csv)


def write_plot(done: Sequence[Done], out: Path) -> None:
    """Latency and listeners with underruns, of the last phase, over streams or over rates, as its last point has them."""
    is_rate = done[-1].wish.rate_hz is not None
    alike = (one for one in done if one.phase == done[-1].phase and (one.wish.rate_hz is not None) == is_rate)
    own = sorted(alike, key=lambda one: one.wish.streams)
    try:
        plot([one.point for one in own], out / "chain.png", is_rate=is_rate, buffer_s=own[0].plan.buffer_s)
    except NoPlot as why:
        print(why)


def write_logs(logs: Path, out: Path, lines: int = 30) -> None:
    """The last lines of every process."""
    parts = []
    for log in sorted(logs.glob("*.log")):
        tail = log.read_text(errors="replace").splitlines()[-lines:]
        parts.append(f"==> {log.name}\n" + "\n".join(line[:2000] for line in tail) + "\n")
    (out / "logs.txt").write_text("\n".join(parts))


def _phases(done: Sequence[Done]) -> list[str]:
    return list(dict.fromkeys(one.phase for one in done))


def _replace(path: Path, text: str) -> None:
    """Whole or not at all, should it all end now."""
    draft = path.with_suffix(path.suffix + ".new")
    draft.write_text(text)
    draft.replace(path)
