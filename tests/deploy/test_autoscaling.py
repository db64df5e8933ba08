"""The metrics that autoscalers scale by: prometheus-adapter's rules give them, of each pod, by promtool's own reckoning."""

from __future__ import annotations

import re
import subprocess

import pytest
import yaml

from services.runtime import instruments
from support.manifests.overlays import FULL
from support.manifests.rendered import DEPLOY, of_kind, render
from support.manifests.scaling import LAG, PLACES
from support.telemetry.prometheus import PROMTOOL

RULES = yaml.safe_load((DEPLOY / "autoscaling/prometheus-adapter.yaml").read_text())["rules"]["custom"]


def taken(rule: dict, series: str) -> bool:
    """Whether the rule's series query takes a series of that name."""
    pattern = re.search(r'__name__=~"([^"]+)"', rule["seriesQuery"])
    return bool(re.search(pattern[1], series)) if pattern else rule["seriesQuery"].partition("{")[0] == series


def query(rule: dict, series: str) -> str:
    """What the adapter asks for pods a and b of namespace csm."""
    asked = rule["metricsQuery"].replace("<<.Series>>", series).replace("<<.GroupBy>>", "pod")
    return asked.replace("<<.LabelMatchers>>", 'namespace="csm",pod=~"a|b"')


def test_each_metric_of_an_autoscaler_is_given_by_one_rule():
    asked = {
        metric["pods"]["metric"]["name"]
        for scaler in of_kind(render(*FULL), "HorizontalPodAutoscaler")
        for metric in scaler["spec"]["metrics"]
        if "pods" in metric
    }
    assert asked == {series for series, _ in PLACES.values()} | {LAG}
    for series, _ in PLACES.values():
        (rule,) = [rule for rule in RULES if taken(rule, series)]
        assert "name" not in rule
    (rule,) = [rule for rule in RULES if taken(rule, "csm_event_loop_lag_seconds_bucket")]
    assert rule["name"] == {"as": LAG}
    for rule in RULES:
        assert rule["resources"]["overrides"] == {name: {"resource": name} for name in ("namespace", "pod")}


def test_the_lag_is_held_against_an_edge_of_its_buckets():
    """Between two edges Prometheus guesses."""
    for scaler in of_kind(render(*FULL), "HorizontalPodAutoscaler"):
        for metric in scaler["spec"]["metrics"]:
            if metric.get("pods", {}).get("metric", {}).get("name") == LAG:
                target_s = int(metric["pods"]["target"]["averageValue"].removesuffix("m")) / 1000
                assert target_s in instruments._WORK_S


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian: apt-get install prometheus)")
def test_the_rules_give_a_value_of_each_pod(tmp_path):
    streams, lag = "csm_codec_slots_active", "csm_event_loop_lag_seconds_bucket"
    by_name = {series: query(next(rule for rule in RULES if taken(rule, series)), series) for series in (streams, lag)}
    # Pod a's loop: 9 of 10 within 5 ms, all within 40. Pod b's: all late. Another namespace's pod is in no answer.
    fed = {
        f'{streams}{{namespace="csm", pod="a", instance="1:9464"}}': "20x9",
        f'{streams}{{namespace="csm", pod="b", instance="2:9464"}}': "31x9",
        f'{streams}{{namespace="other", pod="a", instance="3:9464"}}': "99x9",
    }
    for pod, within in (("a", {"0.005": 9, "0.04": 10, "+Inf": 10}), ("b", {"0.005": 0, "0.04": 0, "+Inf": 10})):
        fed |= {f'{lag}{{namespace="csm", pod="{pod}", le="{le}"}}': f"0+{rate}x9" for le, rate in within.items()}
    found = [
        {"expr": by_name[streams], "eval_time": "5m", "exp_samples": [{"labels": f'{{pod="{p}"}}', "value": v} for p, v in (("a", 20), ("b", 31))]},
        # By interpolation: half-way from 5 to 40 ms; beyond the last edge, that edge.
        {"expr": f"round(1e4 * ({by_name[lag]}))", "eval_time": "5m", "exp_samples": [{"labels": f'{{pod="{p}"}}', "value": v} for p, v in (("a", 225), ("b", 400))]},
    ]  # fmt: skip
    case = {
        "interval": "1m",
        "input_series": [{"series": s, "values": v} for s, v in fed.items()],
        "promql_expr_test": found,
    }
    (tmp_path / "case.yaml").write_text(
        yaml.safe_dump({"rule_files": [], "evaluation_interval": "1m", "tests": [case]})
    )
    done = subprocess.run([PROMTOOL, "test", "rules", tmp_path / "case.yaml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
