"""Dashboards and alerts ask for what is exported, by names, labels and values; and the alerts' tests feed that."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
from pathlib import Path

import grpc
import pytest
import yaml
from opentelemetry.metrics import Histogram

from services.runtime import instruments
from support.telemetry import promql, tables
from support.telemetry.prometheus import PROMTOOL

DEPLOY = tables.DEPLOY
RULES_FILE, CASES_FILE = DEPLOY / "alerts" / "csm.rules.yaml", DEPLOY / "alerts" / "csm.rules.test.yaml"
RULES = [rule for group in yaml.safe_load(RULES_FILE.read_text())["groups"] for rule in group["rules"]]
CASES = yaml.safe_load(CASES_FILE.read_text())["tests"]
DASHBOARDS = {path.stem: json.loads(path.read_text()) for path in sorted((DEPLOY / "dashboards").glob("*.json"))}
PANELS = [(name, panel) for name, dashboard in DASHBOARDS.items() for panel in dashboard["panels"]]

METRICS = {series: metric for metric in tables.metrics() for series in metric.series}
OF_TARGET = {"job", "instance"}  # Prometheus' own, by whichever road a series came
OF_PLACE = {"namespace"}  # of what its operator scrapes; elsewhere there is none, and all are one group
METHODS = {name for _, name, kind in tables.spans() if kind == "server"}
VALUES = {
    "rpc_response_status_code": {code.name for code in grpc.StatusCode},
    "csm_error_origin": {"caller", "load", "server", ""},
    "rpc_service": {name.rpartition("/")[0] for name in METHODS},
    "rpc_method": METHODS,
    "stage": set(tables.SERVICES) - {"gateway"},
    "result": {"hit", "miss", "found", "not_found", "unsure", "failed"},
    "outcome": {"written", "lost", "resumed", "refused", "exhausted"},
    "finish_reason": {"END_OF_SPEECH", "MAX_LENGTH"},
}


def labels_of(series: str) -> set[str]:
    own = set(METRICS[series].labels) | OF_TARGET
    return own | {"le"} if series.endswith("_bucket") else own


def check(expr: str) -> None:
    """Raises: AssertionError naming what no service exports."""
    query = promql.parse(expr)
    assert query.selectors, f"asks for nothing: {expr}"
    known = set()
    for series, matchers in query.selectors:
        assert series in METRICS, f"{series} is not exported"
        known |= labels_of(series) | OF_PLACE
        for label, operator, value in matchers:
            assert label in labels_of(series) | OF_PLACE, f"{series} has no label {label}"
            if label in VALUES:
                asked = alternatives(value) if operator in ("=~", "!~") else {value}
                assert asked <= VALUES[label], f"{label} is never {asked - VALUES[label]}"
    assert query.grouping <= known, f"no series has {query.grouping - known}"


def alternatives(value: str) -> set[str]:
    """What a pattern of names and one level of groups matches: `a|b/(c|d)`."""
    parts = re.findall(r"((?:[^|()]|\([^)]*\))+)", value)
    found = set()
    for part in parts:
        head, _, group = part.partition("(")
        found |= {head + each for each in group.rstrip(")").split("|")}
    return found


def plain(expr: str) -> str:
    """A dashboard's query with its variables filled in."""
    return expr.replace("$__rate_interval", "5m").replace("$instance", ".*").replace("$namespace", ".*")


@pytest.mark.parametrize(
    ("expr", "complaint"),
    [
        ("sum(rate(csm_backbone_slot_active[5m]))", "not exported"),
        ("csm_request_finished", "not exported"),
        ('csm_backbone_slots_active{stage="codec"}', "has no label stage"),
        ('rpc_server_call_duration_seconds_count{rpc_response_status_code="EXHAUSTED"}', "code is never"),
        ("sum by (le, stage) (rate(csm_backbone_queue_duration_seconds_bucket[5m]))", "no series has {'stage'}"),
        ("csm_codec_slots_active and on (pod) csm_codec_slots_capacity", "no series has {'pod'}"),
        ("1 > 0", "asks for nothing"),
    ],
)
def test_the_check_finds_what_is_wrong(expr, complaint):
    with pytest.raises(AssertionError, match=re.escape(complaint)):
        check(expr)


@pytest.mark.parametrize(
    ("dashboard", "panel"), PANELS, ids=lambda value: value if isinstance(value, str) else value["title"]
)
def test_panels_ask_for_what_is_exported(dashboard, panel):
    for target in panel["targets"]:
        check(plain(target["expr"]))
        shown = re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])
        by = promql.parse(plain(target["expr"])).grouping
        assert set(shown) <= (by or OF_TARGET), "a legend shows only labels that the query keeps"
    assert panel["description"] and len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


def test_dashboards_are_what_their_script_writes():
    script = runpy.run_path(str(DEPLOY / "dashboards" / "build.py"))
    assert {name: script[name]() for name in ("request", "stages", "generator")} == DASHBOARDS


def test_every_panel_is_of_the_chosen_namespaces():
    for name, panel in PANELS:
        for target in panel["targets"]:
            for series, matchers in promql.parse(target["expr"]).selectors:
                assert ("namespace", "=~", "$namespace") in matchers, f"{name}: {panel['title']}: {series}"
    assert all(
        "namespace" in {each["name"] for each in dashboard["templating"]["list"]} for dashboard in DASHBOARDS.values()
    )


@pytest.mark.parametrize(
    "rule", [rule for rule in RULES if rule["alert"] != "CsmServiceMissing"], ids=lambda rule: rule["alert"]
)
def test_alerts_are_of_one_namespace_each(rule):
    """Two deployments beside each other, a new bundle and the old one, must not hide each other's faults."""
    apart = re.findall(r"\b(?:by|on) \(([^)]*)\)", rule["expr"])
    assert all("namespace" in labels.split(", ") for labels in apart)
    assert len(re.findall(r"\b(?:sum|min|max) by \(", rule["expr"])) == len(
        re.findall(r"\b(?:sum|min|max|avg|count)\b", rule["expr"])
    )


def test_panels_do_not_lie_on_each_other():
    for dashboard in DASHBOARDS.values():
        cells = [
            (x, y)
            for place in (panel["gridPos"] for panel in dashboard["panels"])
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        ]
        assert len(cells) == len(set(cells)) and max(x for x, _ in cells) < 24


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_alerts_ask_for_what_is_exported_and_say_what_to_do(rule):
    check(rule["expr"])
    assert rule["labels"]["severity"] in ("critical", "warning") and rule["for"]
    notes = rule["annotations"]
    assert len(notes["summary"]) > 20 and len(notes["runbook"]) > 60
    assert notes["runbook_url"] == f"docs/operations/alerts.md#{rule['alert'].lower()}"
    for mentioned in re.findall(r"\bCsm[A-Z]\w+", notes["runbook"]):
        assert mentioned in {other["alert"] for other in RULES}
    for mentioned in re.findall(r"\bcsm_\w+", notes["runbook"]):
        assert mentioned in METRICS


def test_quantiles_are_held_against_edges_of_buckets(metrics):
    """Between two edges Prometheus guesses, and would decide by its guess whom to wake."""
    for instrument in vars(instruments).values():
        if isinstance(instrument, Histogram):
            instrument.record(0)
    edges = {
        name: points[0].explicit_bounds for name, points in metrics().items() if hasattr(points[0], "explicit_bounds")
    }
    parts = [part for rule in RULES for part in re.split(r"\n\s*(?:or|and on \(namespace\))\n", rule["expr"])]
    held = [(part, float(part.rpartition(">")[2])) for part in parts if "histogram_quantile" in part]
    for _, panel in PANELS:
        steps = panel["fieldConfig"]["defaults"].get("thresholds", {}).get("steps", ())
        expr = panel["targets"][0]["expr"]  # whose limit the panel's line is
        held += [(expr, step["value"]) for step in steps if step["value"] and "histogram_quantile" in expr]
    assert len(held) > 10
    for expr, limit in held:
        ((series, _),) = promql.parse(plain(expr)).selectors
        assert limit in edges[METRICS[series].name], f"{expr}: {limit}"


def test_the_operations_page_has_every_alert():
    page = (DEPLOY.parent / "docs" / "operations" / "alerts.md").read_text()
    headings = re.findall(r"^#+ (Csm\w+)$", page, re.MULTILINE)
    assert sorted(headings) == sorted(rule["alert"] for rule in RULES)


def test_every_alert_is_tested_both_ways():
    fires, quiet = set(), set()
    for case in CASES:
        for question in case["promql_expr_test"]:
            alert = re.search(r'alertname="(\w+)"', question["expr"])[1]
            (fires if question["exp_samples"] else quiet).add(alert)
    assert fires == quiet == {rule["alert"] for rule in RULES}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_the_alerts_tests_feed_series_that_are_exported(case):
    for fed in case["input_series"]:
        ((series, matchers),) = promql.parse(fed["series"]).selectors
        assert {label for label, _, _ in matchers} - OF_PLACE == labels_of(series)
        for label, _, value in matchers:
            assert value in VALUES.get(label, {value})


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian: apt-get install prometheus)")
def test_promtool_reads_every_query_and_its_tests_of_the_alerts_pass(tmp_path):
    def run(*arguments: str | Path) -> None:
        done = subprocess.run([PROMTOOL, *map(str, arguments)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    run("check", "rules", RULES_FILE)
    run("test", "rules", CASES_FILE)
    queries = [plain(target["expr"]) for _, panel in PANELS for target in panel["targets"]]
    asked = {"groups": [{"name": "dashboards", "rules": [
        {"record": f"panel:{number}", "expr": expr} for number, expr in enumerate(queries)
    ]}]}  # fmt: skip
    (tmp_path / "dashboards.yaml").write_text(yaml.safe_dump(asked))
    run("check", "rules", "--lint=none", tmp_path / "dashboards.yaml")
