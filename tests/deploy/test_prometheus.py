"""Debian's Prometheus scrapes the running chain as deploy/compose does: every query of every dashboard has data."""

from __future__ import annotations

import math

import pytest

from support.telemetry import prometheus

# What counts faults of ours: there were none.
FAULTS = {("stages", "Calls that failed by the stage's fault")}

pytestmark = pytest.mark.skipif(
    prometheus.PROMETHEUS is None, reason="prometheus is not installed (Debian: apt-get install prometheus)"
)


def test_every_panel_has_data(observed):
    assert len(observed.panels) > 30
    empty = {panel for panel, lines in observed.panels.items() if not lines}
    assert empty <= FAULTS, empty


def test_the_lines_are_those_of_the_talk(observed):
    def last(dashboard: str, title: str) -> dict[str, float]:
        return {legend: values[-1] for legend, (_, values) in observed.panels[dashboard, title].items()}

    builds = last("stages", "Builds")
    assert len(builds) == 5 and set(builds.values()) == {1}
    assert {legend.split()[0].split(".")[1] for legend in builds} == {
        "speech",
        "tokenizer",
        "backbone",
        "codec",
        "watermark",
    }
    assert "observer" in last("request", "Audio by token")
    refused = observed.panels["request", "Refusals by token"]
    assert list(refused) == ["limited TOKEN_CHARACTERS"]
    for (_, title), lines in observed.panels.items():
        for at_s, values in lines.values():
            assert len(at_s) == len(values) > 0 and all(math.isfinite(value) for value in values), title
    share = [value for _, values in observed.panels["request", "Streams with an underrun"].values() for value in values]
    assert all(0 <= value <= 1 for value in share)
