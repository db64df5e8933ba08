"""The real chain, once for all tests here that look at what it tells of itself."""

from __future__ import annotations

import asyncio

import pytest

from support.telemetry import chain_under_observation
from support.telemetry import tables as telemetry_tables


@pytest.fixture(scope="session")
def observed(tmp_path_factory):
    """chain_under_observation.Observed, with every exporter on and all that can be logged."""
    settings = {
        "CSM_METRICS_LISTEN": "127.0.0.1:0",
        "CSM_LOG_LEVEL": "DEBUG",
        "CSM_BACKBONE_TRACE_STEPS": "3",
    }
    return asyncio.run(chain_under_observation.observe(tmp_path_factory.mktemp("observed"), settings))


@pytest.fixture(scope="session")
def exported() -> frozenset[str]:
    """Names of all series in Prometheus, by the tables of telemetry.md."""
    return frozenset(name for metric in telemetry_tables.metrics() for name in metric.series)
