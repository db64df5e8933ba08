"""The alerts over a recording of the real chain under a load that it carried: none fires. With a fault put in: its own does.

promtool replays the recording again and again for 24 minutes, longer than any rule waits.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import yaml

from support.telemetry import promql, tables
from support.telemetry.prometheus import PROMTOOL
from support.telemetry.recording import Series, input_series, load, repeated

RULES_FILE = tables.DEPLOY / "alerts" / "csm.rules.yaml"
RULES = [rule for group in yaml.safe_load(RULES_FILE.read_text())["groups"] for rule in group["rules"]]
NAMES = {name for rule in RULES for name, _ in promql.parse(rule["expr"]).selectors}
# carried.yaml is of two processors; what others are called is of other machines, as bench_chain.sh's RECORD makes them.
RECORDINGS = {path.stem: load(path) for path in sorted((tables.DEPLOY.parent / "tests/data").glob("carried*.yaml"))}
# Of a load that was just not carried: a few utterances had an underrun.
LIMITS = {path.stem: load(path) for path in sorted((tables.DEPLOY.parent / "tests/data").glob("limit*.yaml"))}
# Only where a card, tokens or certificates are, which the recorded chain had none of.
ELSEWHERE = {
    "csm_watermark_eager_passes_total",
    "csm_gateway_tokens_stale",
    "csm_tls_certificate_remaining_seconds",
}
MINUTES = 24
SCRAPE_S = 15  # as deploy/compose/prometheus.yaml has it; the recording has more
Fault = Callable[[list[Series]], Iterable[Series]]


def edited(name: str, edit: Callable[[Series], Series], **labels: str) -> Fault:
    """Every series of that name and labels, edited; the others as they are. At least one is."""

    def apply(series: list[Series]) -> list[Series]:
        hit = [each.name == name and all(each.label(k) == v for k, v in labels.items()) for each in series]
        assert any(hit), name
        return [edit(each) if is_hit else each for each, is_hit in zip(series, hit, strict=True)]

    return apply


def slower(histogram: str, limit: float, share: float, **labels: str) -> Fault:
    """`share` of what was counted within `limit` takes longer."""

    def edit(each: Series) -> Series:
        return scaled(each, 1 - share) if float(each.label("le")) <= limit else each

    return edited(f"{histogram}_bucket", edit, **labels)


def scaled(each: Series, factor: float) -> Series:
    """A counter that grew by that much more or less."""
    first = next(value for value in each.values if value is not None)
    return replace(each, values=[value and first + factor * (value - first) for value in each.values])


def constant(name: str, value: float, **labels: str) -> Fault:
    return edited(name, lambda each: replace(each, values=[value] * len(each.values)), **labels)


def grows(name: str, **labels: str) -> Fault:
    """A counter that is one larger from a third on."""

    def edit(each: Series) -> Series:
        third = len(each.values) // 3
        return replace(each, values=[(v or 0.0) + (at > third) for at, v in enumerate(each.values)])

    return edited(name, edit, **labels)


def ends(share: float, **labels: str) -> Fault:
    """Beside calls that end well, `share` of as many end so."""

    def apply(series: list[Series]) -> list[Series]:
        well = [
            each
            for each in series
            if each.name == "rpc_server_call_duration_seconds_count"
            and each.label("rpc_method") == "csm.speech.v1.SpeechService/StreamSynthesize"
            and each.label("rpc_response_status_code") == "OK"
        ]
        assert well
        return series + [
            replace(scaled(each, share), labels=tuple(sorted({**dict(each.labels), **labels}.items()))) for each in well
        ]

    return apply


def all_of(*faults: Fault) -> Fault:
    def apply(series: list[Series]) -> Iterable[Series]:
        for fault in faults:
            series = list(fault(series))
        return series

    return apply


def away(service: str) -> Fault:
    return lambda series: [each for each in series if each.label("job") != f"csm-{service}"]


UNDERRUNS = slower("csm_stream_buffer_needed_seconds", 0.2, 0.2)
# What happened → the alerts that tell of it, and no others.
FAULTS: dict[str, tuple[Fault, set[str]]] = {
    "one stream in five has an underrun": (UNDERRUNS, {"CsmUnderruns"}),
    "chunks wait, and listeners hear it": (
        all_of(UNDERRUNS, slower("csm_stage_queue_duration_seconds", 0.3, 0.2, job="csm-codec")),
        {"CsmUnderruns", "CsmStageQueue"},
    ),
    "chunks wait, and no listener hears it": (
        slower("csm_stage_queue_duration_seconds", 0.3, 0.2, job="csm-codec"),
        set(),
    ),
    "the gateway's event loop is late": (
        slower("csm_event_loop_lag_seconds", 0.15, 0.05, job="csm-gateway"),
        {"CsmEventLoopLag"},
    ),
    "speech is slower than it is heard": (slower("csm_request_real_time_factor", 1, 0.2), {"CsmSpeechSlow"}),
    "frames are slow": (slower("csm_backbone_frame_step_duration_seconds", 0.08, 0.2), {"CsmFrameSlow"}),
    "first audio is late": (slower("csm_request_time_to_first_audio_seconds", 1, 0.2), {"CsmFirstAudioSlow"}),
    "requests wait for a slot": (slower("csm_backbone_queue_duration_seconds", 1, 0.2), {"CsmSlotWait"}),
    "a replica is ejected": (grows("csm_gateway_ejections_total", stage="codec"), {"CsmReplicaEjected"}),
    "one utterance in twenty fails": (
        ends(0.05, rpc_response_status_code="UNAVAILABLE", csm_error_origin="server"),
        {"CsmRequestsFail"},
    ),
    "one utterance in eleven is refused": (
        ends(0.1, rpc_response_status_code="RESOURCE_EXHAUSTED", csm_error_origin="load"),
        {"CsmRequestsRefused"},
    ),
    "the codec is gone": (away("codec"), {"CsmServiceMissing"}),
    "the codec is not ready": (constant("csm_ready", 0, job="csm-codec"), {"CsmStageNotReady"}),
    "the gateway is not ready": (constant("csm_ready", 0, job="csm-gateway"), {"CsmGatewaysNotReady"}),
    "no frame is made": (
        all_of(
            edited("csm_backbone_frame_step_duration_seconds_count", lambda each: scaled(each, 0)),
            constant("csm_backbone_slots_active", 1),
        ),
        {"CsmBackboneStuck"},
    ),
    "records of the audit trail are lost": (
        edited("csm_audit_records_total", lambda each: replace(each, values=[float(at) for at, _ in enumerate(each.values)]), outcome="lost"),
        {"CsmAuditLost"},
    ),
}  # fmt: skip


def check_fired(series: Iterable[Series], expected: set[str], tmp_path: Path) -> None:
    """Raises: AssertionError when other alerts fire, at any time of the replay, than those."""
    # Group by name: how many there are of one, by instance or stage, is of no matter here.
    question = {
        "expr": 'group by (alertname) (count_over_time(ALERTS{alertstate="firing"}[1h]))',
        "eval_time": f"{MINUTES}m",
        "exp_samples": [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in sorted(expected)],
    }
    fed = input_series([each for each in series if each.name in NAMES])
    case = {"interval": f"{SCRAPE_S}s", "input_series": fed, "promql_expr_test": [question]}
    document = {"rule_files": [str(RULES_FILE)], "evaluation_interval": "15s", "tests": [case]}
    path = tmp_path / "replay.yaml"
    path.write_text(yaml.dump(document, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper)))
    done = subprocess.run([str(PROMTOOL), "test", "rules", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@cache
def replayed(name: str) -> list[Series]:
    run, recorded = (RECORDINGS | LIMITS)[name]
    length_s = (len(recorded[0].values) - 1) * run["every_s"]
    series = repeated(recorded, -(-MINUTES * 60 // length_s))
    return [replace(each, values=each.values[:: SCRAPE_S // run["every_s"]]) for each in series if each.name in NAMES]


@pytest.mark.parametrize("name", RECORDINGS)
def test_a_recording_is_of_a_chain_that_spoke_and_kept_up(name):
    run, recorded = RECORDINGS[name]

    def grew(name: str, **labels: str) -> float:
        hit = [each for each in recorded if each.name == name and all(each.label(k) == v for k, v in labels.items())]
        assert hit, name
        return sum((each.values[-1] or 0) - (each.values[0] or 0) for each in hit)

    assert len(recorded[0].values) * run["every_s"] >= (180 if name == "carried" else 45) and run.get("carried", True)
    assert NAMES - {each.name for each in recorded} <= ELSEWHERE, "make the recording again"
    streams = grew("csm_stream_buffer_needed_seconds_count")
    assert streams >= 20 and grew("csm_backbone_frame_step_duration_seconds_count") > 12.5 * 60
    assert grew("csm_stream_buffer_needed_seconds_bucket", le="0.2") >= 0.95 * streams


needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="promtool is not installed (Debian: apt-get install prometheus)"
)


@needs_promtool
@pytest.mark.parametrize("name", RECORDINGS)
def test_nothing_fires_at_a_load_that_is_carried(name, tmp_path):
    check_fired(replayed(name), set(), tmp_path)


@needs_promtool
@pytest.mark.parametrize("name", LIMITS)
def test_nothing_fires_while_one_utterance_in_a_hundred_at_most_has_an_underrun(name, tmp_path):
    run, recorded = LIMITS[name]
    assert not run["carried"] and 0 < run["underruns"] <= 0.01 * run["utterances"]
    assert NAMES - {each.name for each in recorded} <= ELSEWHERE, "make the recording again"
    check_fired(replayed(name), set(), tmp_path)


@needs_promtool
@pytest.mark.parametrize("what", FAULTS)
def test_a_fault_fires_its_own_alerts(what, tmp_path):
    fault, expected = FAULTS[what]
    check_fired(fault(replayed("carried")), expected, tmp_path)
