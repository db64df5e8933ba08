"""The collector against OpenTelemetry's own exporters; the store's bounds; when a trace is whole."""

import asyncio
import os
import time
from dataclasses import replace

import grpc
import pytest
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1 import trace_pb2
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, SpanKind, Status, StatusCode

from gateway.cli.trace import spans as traces
from gateway.cli.trace.collector import Collector
from gateway.cli.trace.spans import Span, TraceStore, is_complete

A, B, C, D = ("a" * 32, "b" * 32, "c" * 32, "d" * 32)
ROOT = Span("gateway", "Speech/Say", "server", "01", "", 0, 100)
CALL = Span("gateway", "Codec/Decode", "client", "02", "01", 10, 90)
SIDE = Span("codec", "Codec/Decode", "server", "03", "02", 20, 80)


@pytest.fixture
async def collected(tmp_path):
    store = TraceStore(tmp_path)
    async with Collector(store) as collector:
        yield store, collector.endpoint


def provider(endpoint, service):
    made = TracerProvider(resource=Resource.create({"service.name": service}), shutdown_on_exit=False)
    made.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    return made


async def test_spans_of_two_processes_lie_in_one_trace(collected):
    store, endpoint = collected
    gateway, codec = provider(endpoint, "csm-gateway"), provider(endpoint, "csm-codec")
    with gateway.get_tracer("t").start_as_current_span("Speech/Say", kind=SpanKind.SERVER) as root:
        root.add_event("first_output", {"stage": "codec"}, timestamp=root.start_time + 5)
        with codec.get_tracer("t").start_as_current_span("Codec/Decode", kind=SpanKind.SERVER) as side:
            side.set_status(Status(StatusCode.ERROR, "UNAVAILABLE: gone"))
            side.set_attributes({"rows": 3, "share": 0.5, "ok": True, "list": [1, 2]})
    for made in (gateway, codec):
        await asyncio.to_thread(made.shutdown)
    top, below = store.read(f"{root.context.trace_id:032x}")
    assert (top.service, top.name, top.kind, top.parent_id, top.error) == ("gateway", "Speech/Say", "server", "", "")
    assert (top.events[0].name, top.events[0].attributes) == ("first_output", {"stage": "codec"})
    assert top.events[0].time_ns == top.start_ns + 5
    assert (below.service, below.parent_id, below.error) == ("codec", top.span_id, "UNAVAILABLE: gone")
    assert below.attributes == {"rows": 3, "share": 0.5, "ok": True}
    assert (top.start_ns, top.end_ns) == (root.start_time, root.end_time)


async def test_a_linked_root_goes_to_the_traces_it_served(collected):
    store, endpoint = collected
    made = provider(endpoint, "csm-backbone")
    tracer = made.get_tracer("t")
    served = [tracer.start_span("Generate") for _ in range(2)]
    step = tracer.start_span("step", links=[Link(span.get_span_context()) for span in served])
    for span in (step, *served):
        span.end()
    await asyncio.to_thread(made.shutdown)
    for span in served:
        found = store.read(f"{span.context.trace_id:032x}")
        assert sorted((span.name, span.linked) for span in found) == [("Generate", False), ("step", True)]
    assert not store.read(f"{step.context.trace_id:032x}")


async def test_housekeeping_and_metrics_are_taken_and_not_kept(collected):
    store, endpoint = collected
    made = provider(endpoint, "csm-gateway")
    made.get_tracer("t").start_span("csm.codec.v1.CodecService/GetModelInfo").end()
    await asyncio.to_thread(made.shutdown)
    meter = MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter(endpoint=endpoint))])
    meter.get_meter("t").create_counter("n").add(1)
    assert await asyncio.to_thread(meter.force_flush)
    await asyncio.to_thread(meter.shutdown)
    assert not list(store.folder.glob("*"))


def test_the_oldest_trace_goes_first_also_after_a_restart(tmp_path):
    store = TraceStore(tmp_path, keep=2)
    store.add(A, ROOT)
    store.add(B, ROOT)
    store.add(A, SIDE)
    later = time.time() + 10
    os.utime(tmp_path / f"{B}.jsonl", (later, later))
    store = TraceStore(tmp_path, keep=2)
    store.add(C, ROOT)
    assert [len(store.read(trace_id)) for trace_id in (A, B, C, D)] == [0, 1, 1, 0]


def test_a_trace_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(traces, "MAX_SPANS", 3)
    store = TraceStore(tmp_path)
    assert [store.add(A, ROOT) for _ in range(5)] == [True] * 3 + [False] * 2
    assert len(TraceStore(tmp_path).read(A)) == 3


async def test_the_collector_says_what_it_dropped(collected, monkeypatch):
    store, endpoint = collected
    monkeypatch.setattr(traces, "MAX_SPANS", 1)
    spans = [trace_pb2.Span(trace_id=bytes.fromhex(A), span_id=bytes([n] * 8), name="n") for n in (1, 2, 3)]
    broken = trace_pb2.Span(trace_id=b"short", span_id=bytes(8))
    request = trace_service_pb2.ExportTraceServiceRequest(
        resource_spans=[{"scope_spans": [{"spans": [*spans, broken]}]}]
    )
    async with grpc.aio.insecure_channel(endpoint.removeprefix("http://")) as channel:
        response = await trace_service_pb2_grpc.TraceServiceStub(channel).Export(request)
    assert response.partial_success.rejected_spans == 2
    assert [span.service for span in store.read(A)] == ["unknown"]


@pytest.mark.parametrize("bad", ["", "../../etc/passwd", "A" * 32, "a" * 31, "a" * 32 + "\n"])
def test_only_trace_ids_become_files(tmp_path, bad):
    with pytest.raises(ValueError, match="not a trace id"):
        TraceStore(tmp_path).read(bad)


def test_a_line_that_is_being_written_waits(tmp_path):
    store = TraceStore(tmp_path)
    store.add(A, ROOT)
    with (tmp_path / f"{A}.jsonl").open("a") as file:
        file.write('{"service": "co')
    assert store.read(A) == [ROOT]


@pytest.mark.parametrize(
    ("spans", "whole"),
    [
        ([], False),
        ([ROOT], True),
        ([ROOT, CALL], False),
        ([ROOT, SIDE], False),
        ([CALL, SIDE], False),
        ([ROOT, CALL, SIDE], True),
        ([ROOT, replace(CALL, error="UNAVAILABLE")], True),
        ([replace(ROOT, parent_id="99"), CALL, SIDE], True),  # the caller has a trace of its own
        ([ROOT, replace(SIDE, span_id="04", parent_id="", linked=True)], True),
    ],
)
def test_when_a_trace_is_whole(spans, whole):
    assert is_complete(spans) is whole


async def test_waiting_ends_when_the_trace_is_whole(tmp_path):
    store = TraceStore(tmp_path)
    for span in (SIDE, ROOT):
        store.add(A, span)
    waiting = asyncio.create_task(TraceStore(tmp_path).wait(A, 30))
    assert not (await asyncio.wait({waiting}, timeout=0.6))[0], "the call between the two is missing"
    store.add(A, CALL)
    spans, whole = await asyncio.wait_for(waiting, 5)
    assert whole and spans == [ROOT, CALL, SIDE]


async def test_waiting_is_bounded(tmp_path):
    assert await TraceStore(tmp_path).wait(A, 0.1) == ([], False)
