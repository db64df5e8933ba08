"""The collector's configuration hangs together. No collector runs here: there is none to be had from the registries."""

from __future__ import annotations

import re

import pytest
import yaml

from support.manifests.rendered import container, one, render, settings_of
from support.telemetry import tables

CONFIG = yaml.safe_load((tables.DEPLOY / "collector" / "config.yaml").read_text())
PIPELINES = CONFIG["service"]["pipelines"]
# Of the contrib distribution, by what a pipeline calls them.
TYPES = {
    "receivers": {"otlp"},
    "processors": {"memory_limiter", "batch", "tail_sampling"},
    "exporters": {"otlp", "prometheus", "debug"},
    "connectors": {"spanmetrics"},
    "extensions": {"health_check"},
}


def test_all_that_is_defined_is_used_and_the_other_way_round():
    connectors = set(CONFIG["connectors"])
    for part in ("receivers", "processors", "exporters"):
        used = {name for pipeline in PIPELINES.values() for name in pipeline[part]} - connectors
        assert used == set(CONFIG[part])
    assert set(CONFIG["service"]["extensions"]) == set(CONFIG["extensions"])
    assert set(CONFIG) == {*TYPES, "service"}
    for part, known in TYPES.items():
        assert {name.partition("/")[0] for name in CONFIG[part]} <= known


def test_connectors_join_two_pipelines_of_the_right_kinds():
    kinds = {"spanmetrics": ("traces", "metrics")}
    for name in CONFIG["connectors"]:
        fed = {pipeline.partition("/")[0] for pipeline, parts in PIPELINES.items() if name in parts["exporters"]}
        feeds = {pipeline.partition("/")[0] for pipeline, parts in PIPELINES.items() if name in parts["receivers"]}
        assert (fed, feeds) == tuple({kind} for kind in kinds[name])


def test_memory_is_limited_first_and_batches_are_made_last():
    for parts in PIPELINES.values():
        assert parts["processors"][0] == "memory_limiter"
        assert "batch" not in parts["processors"][:-1]
    assert "tail_sampling" not in PIPELINES["traces/all"]["processors"], "span metrics count every span"
    assert PIPELINES["traces/kept"]["processors"].index("tail_sampling") == 1


def test_policies_ask_for_attributes_that_spans_have():
    policies = CONFIG["processors"]["tail_sampling"]["policies"]
    assert {policy["name"] for policy in policies} >= {"errors", "slow", "refused"}
    types, asked = tables.attributes(), set()
    for policy in policies:
        assert set(policy) == {"name", "type", policy["type"]}
        for condition in policy.get("ottl_condition", {}).get("span", ()):
            if found := re.fullmatch(r'attributes\["([\w.]+)"\] (==|>) (\d+(?:\.\d+)?|"\w+")', condition):
                kind = "string" if found[3].startswith('"') else "double" if "." in found[3] else "int"
                assert types[found[1]] == kind, condition
                asked.add(found[1])
            else:
                (name,) = re.fullmatch(r'name == "([\w.]+)"', condition).groups()
                assert name in {span for _, span, _ in tables.spans()}
    assert asked >= {"csm.time_to_first_audio_ms", "csm.underruns", "rpc.response.status_code"}


@pytest.mark.parametrize("overlay", ["cpu-dev", "gpu", "one-card"])
def test_traces_are_judged_when_they_are_whole_and_there_is_memory_until_then(overlay):
    sampling, memory = CONFIG["processors"]["tail_sampling"], CONFIG["processors"]["memory_limiter"]
    wait_s = int(sampling["decision_wait"].removesuffix("s"))
    manifests = render(f"overlays/{overlay}", ("observability",))
    assert wait_s >= settings_of(manifests, "gateway").max_request_s + 5  # its span leaves within a second of its end
    assert sampling["num_traces"] >= wait_s * sampling["expected_new_traces_per_sec"]
    limit = container(one(manifests, "Deployment", "csm-collector"))["resources"]["limits"]["memory"]
    assert limit == "2Gi"
    refusing_from = 2 * 2**30 * (memory["limit_percentage"] - memory["spike_limit_percentage"]) / 100
    assert sampling["num_traces"] * 20_000 < refusing_from / 2, "the other half is for all else"


def test_span_metrics_have_dimensions_that_spans_have():
    connector = CONFIG["connectors"]["spanmetrics"]
    assert {each["name"] for each in connector["dimensions"]} <= set(tables.attributes())
    assert connector["namespace"] == "traces.span.metrics" and connector["histogram"]["unit"] == "s"
    text = (tables.DEPLOY.parent / "docs" / "telemetry.md").read_text()
    for name in ("traces_span_metrics_calls_total", "traces_span_metrics_duration_seconds", "rpc_response_status_code"):
        assert name in text


def test_ports_are_those_that_the_page_tells():
    text = (tables.DEPLOY.parent / "docs" / "telemetry.md").read_text()
    assert CONFIG["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"].endswith(":4317") and ":4317" in text
    assert CONFIG["exporters"]["prometheus"]["endpoint"].endswith(":8889") and "8889" in text
