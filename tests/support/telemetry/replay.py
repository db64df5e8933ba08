"""Metrics of a measured run, played to Prometheus' rules for as long as alerts wait: `promtool test rules` is the clock.

The run's file (tests/data/carried_load.json.gz) has what Prometheus would have scraped every ten seconds, of the series
that the rules ask for. A run lasts minutes, alerts wait for ten: its loaded part is repeated, counters going on.
"""

from __future__ import annotations

import gzip
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import yaml

from support.telemetry import promql, tables

RULES_FILE = tables.DEPLOY / "alerts" / "csm.rules.yaml"
STEP_S = 10
_MINUTES = 45  # longer than any alert's window and wait
_GAUGES = (
    "_active",
    "_capacity",
    "_depth",
    "_used",
    "_idle",
    "_size",
    "_ready",
    "_stale",
    "_remaining_seconds",
    "_info",
)

Series = dict[str, list[float | None]]


def asked() -> set[str]:
    """Names of the series that the rules ask for."""
    rules = [rule for group in yaml.safe_load(RULES_FILE.read_text())["groups"] for rule in group["rules"]]
    return {name for rule in rules for name, _ in promql.parse(rule["expr"]).selectors}


def read(path: Path) -> Series:
    """Series as they were scraped, those that the rules ask for; only while the load was on."""
    with gzip.open(path, "rt") as file:
        series = json.load(file)["series"]
    active = [sum(filter(None, column)) for column in zip(*_named(series, "csm_gateway_streams_active"), strict=True)]
    loaded = [n for n, value in enumerate(active) if value > max(active) / 2]
    first, last = loaded[0] + 1, loaded[-1]  # what began it may lie in the first
    wanted = asked()
    return {name: row[first : last + 1] for name, row in series.items() if re.split(r"[{]", name)[0] in wanted}


def repeated(name: str, row: list[float | None], count: int) -> list[float | None]:
    """`count` values: gauges again and again, counters going on by what the run added."""
    bare = name.partition("{")[0]
    is_gauge = bare.endswith(_GAUGES)
    known = [value for value in row if value is not None]
    if not known:
        return []
    filled, last = [], known[0]
    for value in row:
        last = last if value is None else value
        filled.append(last)
    steps = len(filled) - 1 if not is_gauge else len(filled)
    grown = 0.0 if is_gauge else filled[-1] - filled[0]
    return [filled[n % steps] + (n // steps) * grown for n in range(count)]


def firing(
    series: Series, folder: Path, promtool: str, change: Callable[[str, float], float] = lambda n, v: v
) -> set[str]:
    """Names of the alerts that fire while the run is repeated for 45 minutes. change: of each value, by its series."""
    count = _MINUTES * 60 // STEP_S
    inputs = []
    for name, row in series.items():
        values = repeated(name, row, count)
        text = " ".join(f"{change(name, value):g}" if value is not None else "_" for value in values)
        inputs.append({"series": name, "values": text})
    names = sorted(
        {rule["alert"] for group in yaml.safe_load(RULES_FILE.read_text())["groups"] for rule in group["rules"]}
    )
    # promtool says whether an expectation holds: none is expected, so each that fires is one that fails.
    asked_at = [f"{minute}m" for minute in (15, 25, 35, _MINUTES - 1)]
    tests = {
        "rule_files": [str(RULES_FILE)],
        "evaluation_interval": "30s",
        "tests": [{
            "interval": f"{STEP_S}s",
            "input_series": inputs,
            "promql_expr_test": [
                {"expr": f'count(ALERTS{{alertname="{name}", alertstate="firing"}})', "eval_time": at, "exp_samples": []}
                for name in names for at in asked_at
            ],
        }],
    }  # fmt: skip
    file = folder / "replay.json"
    file.write_text(json.dumps(tests))
    done = subprocess.run([promtool, "test", "rules", file], capture_output=True, text=True)
    found = set(re.findall(r'alertname=\\?"(\w+)', done.stdout + done.stderr))
    assert found or done.returncode == 0, done.stdout + done.stderr
    return found


def _named(series: Series, name: str) -> list[list[float | None]]:
    return [row for key, row in series.items() if key.startswith(f"{name}{{")]
