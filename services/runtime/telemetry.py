"""OpenTelemetry of one process: providers, OTLP export when an endpoint is set, and the instruments."""

from __future__ import annotations

import os

from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

# Seconds. Speech is a matter of tens of milliseconds, an utterance of tens of seconds.
_BUCKETS_S = [0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.5, 0.75, 1, 1.5, 2.5, 5, 10, 20, 40]

_meter = metrics.get_meter("csm")

stage_first_output = _meter.create_histogram(
    "csm.stage.first_output.duration", "s", "request's start to the stage's first output",
    explicit_bucket_boundaries_advisory=_BUCKETS_S,
)
stage_chunk = _meter.create_histogram(
    "csm.stage.chunk.duration", "s", "work on one chunk in the stage",
    explicit_bucket_boundaries_advisory=_BUCKETS_S,
)
time_to_first_audio = _meter.create_histogram(
    "csm.request.time_to_first_audio", "s", "request's start to the first marked audio",
    explicit_bucket_boundaries_advisory=_BUCKETS_S,
)
real_time_factor = _meter.create_histogram(
    "csm.request.real_time_factor", "1", "time taken over length of the audio",
    explicit_bucket_boundaries_advisory=[0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.5, 2, 4],
)
stream_underruns = _meter.create_counter(
    "csm.stream.underruns", "1", "times that a listener who plays from the first audio on would have run dry"
)


def configure(service: str) -> None:
    """Set the process-wide providers. Exports by OTLP gRPC when OTEL_EXPORTER_OTLP_ENDPOINT is set, else nowhere.

    Spans are made either way, so that logs and answers carry trace ids.
    """
    resource = Resource.create({"service.name": f"csm-{service}", "service.namespace": "csm"})
    tracer_provider = TracerProvider(resource=resource)
    readers = []
    if os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        # A short delay, so that a request's trace is whole soon after its end.
        tracer_provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(), schedule_delay_millis=300))
        readers.append(PeriodicExportingMetricReader(OTLPMetricExporter()))
    trace.set_tracer_provider(tracer_provider)
    metrics.set_meter_provider(MeterProvider(resource=resource, metric_readers=readers))


def shutdown() -> None:
    """Flush what is left; blocks for as long as the exporter's own timeout."""
    for provider in (trace.get_tracer_provider(), metrics.get_meter_provider()):
        if hasattr(provider, "shutdown"):
            provider.shutdown()
