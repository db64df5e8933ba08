"""No alert fires at the load that docs/performance.md calls carried, and those of worse runs of it do."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from support.telemetry import replay

DATA = Path(__file__).parents[1] / "data" / "carried_load.json.gz"
PROMTOOL = shutil.which("promtool", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
pytestmark = pytest.mark.skipif(
    PROMTOOL is None, reason="promtool is not installed (Debian: apt-get install prometheus)"
)


@pytest.fixture(scope="module")
def run():
    return replay.read(DATA)


def test_the_run_has_what_the_rules_ask_for(run):
    have = {name.partition("{")[0] for name in run}
    # Only with tokens, TLS, an audit trail: alerts on them have no data there.
    optional = {
        "csm_gateway_tokens_stale",
        "csm_tls_certificate_remaining_seconds",
        "csm_audit_records_total",
        "csm_audit_verifications_total",
    }
    assert replay.asked() - have <= optional
    assert len(next(iter(run.values()))) >= 8


def test_nothing_fires_at_the_carried_load(run, tmp_path):
    assert replay.firing(run, tmp_path, PROMTOOL) == set()


@pytest.mark.parametrize(
    ("alert", "series", "factor"),
    [
        ("CsmUnderruns", 'csm_stream_buffer_needed_seconds_bucket{le="0.2"', 0.9),
        ("CsmBackboneFull", "csm_backbone_slots_capacity", 0.9),
        ("CsmFrameSlow", "csm_backbone_frame_step_duration_seconds_bucket", None),
        ("CsmFirstAudioSlow", "csm_request_time_to_first_audio_seconds_bucket", None),
        ("CsmSpeechSlow", "csm_request_real_time_factor_bucket", None),
    ],
)
def test_worse_runs_fire(run, tmp_path, alert, series, factor):
    """factor: of the series' values; None: what was within the limit is not."""
    limits = {"CsmFrameSlow": 0.08, "CsmFirstAudioSlow": 1.0, "CsmSpeechSlow": 1.0}

    def change(name: str, value: float) -> float:
        bare, _, labels = series.partition("{")
        if name.partition("{")[0] != bare or labels not in name:
            return value
        if factor is not None:
            return value * factor
        le = name.partition('le="')[2].partition('"')[0]
        return 0.0 if float(le) <= limits[alert] else value

    assert alert in replay.firing(run, tmp_path, PROMTOOL, change)
