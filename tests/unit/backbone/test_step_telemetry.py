"""Steps as spans: every Nth one, a root of its own, linked to the requests in it."""

from types import SimpleNamespace

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from services.backbone import step_telemetry


@pytest.fixture
def exporter(monkeypatch):
    held, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(held))
    monkeypatch.setattr(step_telemetry, "_tracer", provider.get_tracer("test"))
    return held


def seq(number: int, *, sampled: bool = True):
    flags = trace.TraceFlags(trace.TraceFlags.SAMPLED if sampled else trace.TraceFlags.DEFAULT)
    context = trace.SpanContext(number, number, is_remote=False, trace_flags=flags)
    return SimpleNamespace(stream=SimpleNamespace(span_context=context))


def test_one_step_in_so_many_is_a_span(exporter):
    telemetry = step_telemetry.StepTelemetry(4)
    for _ in range(11):
        telemetry(0.02, [seq(1), seq(2)])
    first, second = exporter.get_finished_spans()
    assert first.parent is None and first.context.trace_id != second.context.trace_id
    assert [link.context.span_id for link in first.links] == [1, 2]
    assert first.attributes["csm.batch_size"] == 2
    assert first.end_time - first.start_time == pytest.approx(20e6, rel=1e-6)


def test_none_unless_asked_for(exporter, metrics):
    telemetry = step_telemetry.StepTelemetry(0)
    for _ in range(10):
        telemetry(0.02, [seq(1)])
    assert not exporter.get_finished_spans()
    (sizes,) = metrics()["csm.backbone.batch.size"]
    assert (sizes.count, sizes.sum) == (10, 10)


def test_a_large_batch_is_linked_as_far_as_links_go(exporter):
    unseen = SimpleNamespace(stream=SimpleNamespace(span_context=None))
    step_telemetry.StepTelemetry(1)(0.02, [unseen, seq(7, sampled=False), *(seq(n) for n in range(1, 201))])
    (span,) = exporter.get_finished_spans()
    assert [link.context.span_id for link in span.links] == list(range(1, 129)) and not span.dropped_links
    assert span.attributes["csm.batch_size"] == 202


def test_it_is_a_root_whatever_is_current(exporter):
    with trace.use_span(trace.NonRecordingSpan(seq(9).stream.span_context)):
        step_telemetry.StepTelemetry(1)(0.02, [seq(1)])
    assert exporter.get_finished_spans()[0].parent is None
