"""docs/telemetry.md against what five real processes export; and what must never be in it.

Debian's Prometheus scrapes the chain as deploy/compose does: every query of every dashboard has data.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict

import pytest
from opentelemetry.proto.trace.v1 import trace_pb2
from prometheus_client.parser import text_string_to_metric_families

from services.runtime.version import version
from support.telemetry import prometheus, tables
from support.telemetry.chain_under_observation import LONG, MARK, SENTENCE, records

KINDS = {"sum": "counter", "gauge": "gauge", "histogram": "histogram"}
# What the observed chain, without TLS, does not have; test_certificate_metric.py looks at it.
WITH_TLS = {"csm.tls.certificate.remaining"}
# What counts faults of ours: there were none.
FAULTS = {("stages", "Calls that failed by the stage's fault")}
SCOPE = {"otel_scope_name", "otel_scope_version", "otel_scope_schema_url"}

with_prometheus = pytest.mark.skipif(
    prometheus.PROMETHEUS is None, reason="prometheus is not installed (Debian: apt-get install prometheus)"
)


def table() -> list[tables.Metric]:
    return [row for row in tables.metrics() if row.name not in WITH_TLS]


def kind_of(span) -> str:
    return trace_pb2.Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower()


def code_of(span) -> str | None:
    return next((a.value.string_value for a in span.attributes if a.key == "rpc.response.status_code"), None)


def test_metrics_by_otlp_are_those_of_the_table(observed):
    seen, services = {}, defaultdict(set)
    for service, metric in observed.metrics:
        kind = metric.WhichOneof("data")
        labels = {a.key.replace(".", "_") for point in getattr(metric, kind).data_points for a in point.attributes}
        _, _, before = seen.get(metric.name, ("", "", set()))
        seen[metric.name] = KINDS[kind], metric.unit, before | labels
        services[metric.name].add(service)
    assert seen == {row.name: (row.type, row.unit, set(row.labels)) for row in table()}
    assert services == {row.name: set(row.services) for row in table()}


def test_metrics_for_prometheus_are_those_of_the_table(observed):
    seen, services = {}, defaultdict(set)
    for service, page in observed.pages.items():
        for family in text_string_to_metric_families(page):
            if not family.name.startswith(("csm_", "rpc_")):
                continue
            name = family.name + ("_total" if family.type == "counter" else "")
            labels = {label for sample in family.samples for label in sample.labels} - SCOPE - {"le"}
            seen[name] = family.type, seen.get(name, ("", set()))[1] | labels
            services[name].add(service)
    assert seen == {row.exposed: (row.type, set(row.labels)) for row in table()}
    assert services == {row.exposed: set(row.services) for row in table()}


def test_every_process_says_who_it_is(observed):
    assert set(observed.resources) == set(observed.pages) == set(tables.SERVICES)
    instances = {names["service.instance.id"] for names in observed.resources.values()}
    assert len(instances) == len(tables.SERVICES)
    for service, page in observed.pages.items():
        (info,) = [sample for family in text_string_to_metric_families(page) if family.name == "target_info"
                   for sample in family.samples]  # fmt: skip
        assert info.labels["service_name"] == f"csm-{service}" and info.labels["service_namespace"] == "csm"
        assert info.labels["service_version"] == version() != ""
        assert info.labels["service_instance_id"] == observed.resources[service]["service.instance.id"]


# No stage fails in the talk.
_RESUME = ("gateway", "csm.resume", "internal")


def test_spans_are_those_of_the_table(observed):
    seen = {}
    for service, span in observed.spans:
        attributes, events = seen.setdefault((service, span.name, kind_of(span)), (set(), set()))
        attributes |= {a.key for a in span.attributes} - {"error.type"}  # of those that failed alone
        events |= {event.name for event in span.events}
    assert seen == {key: span for key, span in tables.spans().items() if key != _RESUME}


def test_attributes_and_events_are_those_of_the_tables(observed):
    types, events = {}, {}
    for _, span in observed.spans:
        types |= {a.key: a.value.WhichOneof("value").removesuffix("_value") for a in span.attributes}
        for event in span.events:
            events.setdefault(event.name, set()).update(a.key for a in event.attributes)
    elsewhere = {name for key, (attributes, _) in tables.spans().items() if key != _RESUME for name in attributes}
    of_resumes = tables.spans()[_RESUME][0] - elsewhere
    assert types == {name: kind for name, kind in tables.attributes().items() if name not in of_resumes}
    assert events == tables.events()


def test_numbers_are_those_of_the_talk(observed):
    """What the caller did (chain_under_observation._talk) is what the metrics say, however each call ended."""
    calls, finished, lookups, refusals = defaultdict(int), {}, {}, {}
    for family in text_string_to_metric_families(observed.pages["gateway"] + observed.pages["tokenizer"]):
        for sample in family.samples:
            if sample.name == "rpc_server_call_duration_seconds_count":
                calls[sample.labels["rpc_method"].rpartition("/")[2], sample.labels["rpc_response_status_code"]] += int(
                    sample.value
                )
            elif sample.name == "csm_request_finished_total":
                finished[sample.labels["finish_reason"]] = sample.value
            elif sample.name == "csm_tokenizer_cache_lookups_total":
                lookups[sample.labels["result"]] = sample.value
            elif sample.name == "csm_gateway_refusals_total":
                refusals[sample.labels["reason"]] = sample.value
            elif sample.name.endswith("_active"):
                assert sample.value == 0, sample
    # Which of the two a deadline is depends on whose clock is first, by a little.
    broken_off = calls.pop(("StreamSynthesize", "CANCELLED"), 0) + calls.pop(
        ("StreamSynthesize", "DEADLINE_EXCEEDED"), 0
    )
    assert broken_off == observed.broken_off
    told = {
        key: count
        for key, count in calls.items()
        if key[0] in ("StreamSynthesize", "Synthesize", "SynthesizeOnline", "VerifyWatermark")
    }
    assert told == {
        ("StreamSynthesize", "OK"): 1,
        ("Synthesize", "OK"): 3,  # one of them Riva's
        ("SynthesizeOnline", "OK"): 1,
        ("Synthesize", "INVALID_ARGUMENT"): 4,  # one of them beyond its token's limit
        ("Synthesize", "UNAUTHENTICATED"): 1,
        ("VerifyWatermark", "OK"): 1,
    }
    waits = sum(sample.value for family in text_string_to_metric_families(observed.pages["backbone"])
                for sample in family.samples if sample.name == "csm_backbone_queue_duration_seconds_count")  # fmt: skip
    generations = sum(service == "backbone" and span.name.endswith("/Generate") for service, span in observed.spans)
    assert 6 <= waits <= generations  # of units that ended well, and of some that did not
    assert sum(finished.values()) == 6
    assert lookups == {"hit": 1, "miss": 1}
    assert {reason: count for reason, count in refusals.items() if count} == {"NO_TOKEN": 1, "TOKEN_CHARACTERS": 1}
    assert set(refusals) == {"NO_TOKEN", "WRONG_TOKEN", "TOKEN_STREAMS", "TOKEN_CONVERSATIONS", "TOKEN_CHARACTERS"}


def test_streams_alone_need_a_buffer_and_tokens_are_counted(observed):
    spoken = {sample.name: sample for family in text_string_to_metric_families(observed.pages["gateway"])
              for sample in family.samples
              if sample.name.startswith(("csm_stream_buffer", "csm_token", "csm_request_audio"))
              and sample.labels.get("csm_token") != "limited"}  # fmt: skip
    streams = spoken["csm_stream_buffer_needed_seconds_count"].value
    # A stream, a turn, Riva's stream; and of those that their callers left, the ones that had audio. No unary call.
    assert 4 <= streams <= 3 + observed.broken_off
    assert {sample.labels["csm_token"] for name, sample in spoken.items() if name.startswith("csm_token")} == {
        "observer"
    }
    assert spoken["csm_token_audio_seconds_total"].value == spoken["csm_request_audio_seconds_total"].value > 0
    least = 6 * len(SENTENCE)  # utterances and the turn that ended well
    assert least <= spoken["csm_token_characters_total"].value <= least + observed.broken_off * len(LONG)


def test_what_is_built_is_said(observed):
    for service, page in observed.pages.items():
        (info,) = [sample for family in text_string_to_metric_families(page) if family.name == "csm_build_info"
                   for sample in family.samples]  # fmt: skip
        assert info.value == 1 and info.labels["version"] == version() and info.labels["bundle"]
        has_device = service != "gateway"
        assert (info.labels.get("device"), info.labels.get("precision")) == (
            ("cpu", "fp32") if has_device else (None,) * 2
        )


def test_latency_histograms_lead_to_traces(observed):
    traces = {span.trace_id for _, span in observed.spans}
    shown = {}
    for _, metric in observed.metrics:
        if metric.HasField("histogram"):
            found = shown.setdefault(metric.name, set())
            found.update(e.trace_id for point in metric.histogram.data_points for e in point.exemplars)
    for name in ("csm.request.time_to_first_audio", "csm.stream.buffer_needed", "rpc.server.call.duration"):
        assert shown[name] and shown[name] <= traces, name
    assert bytes.fromhex(observed.trace_id) in set().union(*shown.values())


def test_steps_are_roots_linked_to_the_requests_in_them(observed):
    generates = {span.span_id for service, span in observed.spans
                 if service == "backbone" and span.name.endswith("/Generate")}  # fmt: skip
    steps = [span for _, span in observed.spans if span.name == "csm.backbone.step"]
    assert steps and all(not span.parent_span_id for span in steps)
    assert {link.span_id for span in steps for link in span.links} <= generates
    ours = [span for span in steps if observed.trace_id in {link.trace_id.hex() for link in span.links}]
    assert len(ours) >= 3  # one step in three, of a second of speech and more
    assert len({span.trace_id for span in steps}) == len(steps)


def test_a_deadline_ends_every_hop(observed):
    codes = {(service, span.name, code_of(span)) for service, span in observed.spans
             if span.trace_id.hex() == observed.late_trace_id and code_of(span) is not None}  # fmt: skip
    assert {service for service, _, _ in codes} == set(tables.SERVICES)
    # gRPC ends a call's input before it cancels the call: in between, a stage that reads its input may come to its end.
    reads_input = {
        ("codec", "csm.codec.v1.CodecService/Decode"),
        ("watermark", "csm.watermark.v1.WatermarkService/Embed"),
    }
    wrong = [
        (service, name, code)
        for service, name, code in codes
        if not name.endswith("/Tokenize")
        and code not in ("CANCELLED", "DEADLINE_EXCEEDED")
        and not (code == "OK" and (service, name) in reads_input)
    ]
    assert not wrong, wrong


def test_nothing_that_leaves_holds_what_callers_said(observed):
    words = re.compile("|".join(MARK.split()), re.IGNORECASE)
    for service, log in observed.logs.items():
        assert records(log) and not words.search(log), service
    for _, span in observed.spans:
        assert not words.search(str(span)), span
    for _, metric in observed.metrics:
        assert not words.search(str(metric)), metric
    for page in observed.pages.values():
        assert not words.search(page)


def test_the_audit_trail_has_what_was_audible_and_none_of_the_words(observed):
    found = [json.loads(line) for line in observed.audit.splitlines()]
    whole = [record for record in found if record["finish_reason"] != "BROKEN_OFF"]
    assert len(whole) == 6 and len(found) <= 6 + observed.broken_off
    assert {record["token"] for record in found} == {"observer"} and all(record["key_ids"] for record in found)
    assert not re.search("|".join(MARK.split()), observed.audit, re.IGNORECASE)
    # Marked by real nets, searched by real ones; those of less than a second are too short for a sure answer.
    assert {record["verified"] for record in whole} <= {"found", "unsure"}
    assert observed.trace_id in {record["trace_id"] for record in whole}


def test_logs_are_json_and_know_their_trace(observed):
    for service, log in observed.logs.items():
        assert all(line.startswith("{") for line in log.splitlines()), service
        ended = [record for record in records(log) if record.get("code")]
        assert ended and all(record["trace_id"] and record["span_id"] and record["rpc"] for record in ended)
    late = [record for record in records(observed.logs["gateway"]) if record.get("trace_id") == observed.late_trace_id]
    assert [record["rpc"] for record in late if "rpc" in record] == ["/csm.speech.v1.SpeechService/StreamSynthesize"]


@with_prometheus
def test_every_panel_has_data(observed):
    assert len(observed.panels) > 30
    empty = {panel for panel, lines in observed.panels.items() if not lines}
    assert empty <= FAULTS, empty


@with_prometheus
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
