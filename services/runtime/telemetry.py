"""OpenTelemetry of one process: who it is, where its spans and metrics go.

    OTEL_EXPORTER_OTLP_ENDPOINT   spans and metrics by OTLP gRPC
    CSM_METRICS_LISTEN            metrics for Prometheus to fetch, on /metrics

Either, both, or none. The instruments are in `instruments`, spans in `tracing` and `calls`.
"""

from __future__ import annotations

import logging
import os
import uuid

from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, SERVICE_NAMESPACE, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from services.runtime import instruments
from services.runtime.settings import SettingError
from services.runtime.version import version

log = logging.getLogger(__name__)


def configure(service: str, *, metrics_listen: str | None = None) -> None:
    """Set the process-wide providers. metrics_listen: host:port of the Prometheus endpoint, if there is to be one.

    Spans are made even when none leave, so that logs and answers carry trace ids.
    Raises: SettingError when the address cannot be had.
    """
    resource = _resource(service)
    tracer_provider = TracerProvider(resource=resource)
    readers: list[MetricReader] = []
    if os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        # A short delay, so that a request's trace is whole soon after its end.
        tracer_provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(), schedule_delay_millis=300))
        readers.append(PeriodicExportingMetricReader(OTLPMetricExporter()))
    if metrics_listen:
        readers.append(_prometheus(metrics_listen))
    trace.set_tracer_provider(tracer_provider)
    metrics.set_meter_provider(MeterProvider(resource=resource, metric_readers=readers))
    instruments.init_counters(service)


def shutdown() -> None:
    """Flush what is left; blocks for as long as the exporter's own timeout."""
    for provider in (trace.get_tracer_provider(), metrics.get_meter_provider()):
        if hasattr(provider, "shutdown"):
            provider.shutdown()


def _resource(service: str) -> Resource:
    """This process among its like. OTEL_RESOURCE_ATTRIBUTES may add to it, and name the instance."""
    own = {SERVICE_NAME: f"csm-{service}", SERVICE_NAMESPACE: "csm", SERVICE_VERSION: version()}
    given = Resource.create()
    if SERVICE_INSTANCE_ID not in given.attributes:
        own[SERVICE_INSTANCE_ID] = str(uuid.uuid4())
    return given.merge(Resource(own))


def _prometheus(listen: str) -> MetricReader:
    """A reader behind an HTTP server of its own thread. Raises: SettingError."""
    from opentelemetry.exporter.prometheus import PrometheusMetricReader
    from prometheus_client import start_http_server

    host, _, port = listen.rpartition(":")
    try:
        server, _ = start_http_server(int(port), addr=host.strip("[]"))
    except (OSError, OverflowError, ValueError) as error:
        raise SettingError(f"CSM_METRICS_LISTEN={listen!r}: cannot listen there ({error})") from error
    log.info("metrics on http://%s:%d/metrics", host, server.server_port)
    return PrometheusMetricReader()
