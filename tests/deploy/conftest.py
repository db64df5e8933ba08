"""The real chain, once for all tests here that look at what it tells of itself."""

from __future__ import annotations

import asyncio

import pytest

from support.telemetry import chain_under_observation, prometheus
from support.telemetry import tables as telemetry_tables


@pytest.fixture(scope="session")
def observed(tmp_path_factory):
    """chain_under_observation.Observed, with every exporter on and all that can be logged."""
    settings = {
        "CSM_METRICS_LISTEN": "127.0.0.1:0",
        "CSM_LOG_LEVEL": "DEBUG",
        "CSM_BACKBONE_TRACE_STEPS": "3",
    }
    folder, watching = tmp_path_factory.mktemp("observed"), []

    def watch(pages):
        watching.append(prometheus.Prometheus(folder, pages))
        return watching[0]

    options = {"watch": watch} if prometheus.PROMETHEUS else {}
    found = asyncio.run(chain_under_observation.observe(folder, settings, **options))
    found.panels = watching[0].panels if watching else {}
    return found


@pytest.fixture(scope="session")
def exported() -> frozenset[str]:
    """Names of all series in Prometheus, by the tables of telemetry.md."""
    return frozenset(name for metric in telemetry_tables.metrics() for name in metric.series)
