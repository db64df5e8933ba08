"""OpenTelemetry of one process: its resource, and where its spans and metrics go.

    OTEL_EXPORTER_OTLP_[TRACES_|METRICS_]ENDPOINT    spans and metrics by OTLP
    OTEL_TRACES_EXPORTER, OTEL_METRICS_EXPORTER      otlp, console, none; prometheus for metrics
    CSM_METRICS_LISTEN                               metrics for Prometheus to fetch, on /metrics

Without an endpoint or an exporter nothing is sent. The instruments are in `instruments`, spans in `tracing` and `calls`.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    ConsoleMetricExporter,
    MetricExporter,
    MetricReader,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, SERVICE_NAMESPACE, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter

from services.runtime import instruments, otel_environment
from services.runtime.grpc_options import NO_PROXY
from services.runtime.settings import SettingError
from services.runtime.version import version

if TYPE_CHECKING:
    from opentelemetry.sdk._logs import LoggerProvider

log = logging.getLogger(__name__)
T = TypeVar("T")

_SPAN_DELAY_MS = 300  # so that a request's trace is complete soon after its end
_SHUTDOWN_S = 3.0
_PROMETHEUS_PORT = 9464
_NO_PROXY: Any = tuple(NO_PROXY)  # the exporters' types know strings alone


def configure(service: str, *, metrics_listen: str | None = None) -> None:
    """Set the process-wide providers. metrics_listen: host:port of the Prometheus endpoint, if there is to be one.

    Spans are made even when none leave, so that logs and answers carry trace ids. A variable of OpenTelemetry that
    cannot be used is one warning. Raises: SettingError when the address cannot be had.
    """
    for warning in otel_environment.WARNINGS:
        log.warning("%s", warning)
    resource = _resource(service)
    tracer_provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    for name in _exporters("TRACES"):
        exporter = _usable("spans", ConsoleSpanExporter if name == "console" else _otlp_spans)
        if exporter is not None:
            delay_ms = None if "OTEL_BSP_SCHEDULE_DELAY" in os.environ else _SPAN_DELAY_MS
            tracer_provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=delay_ms))
    readers: list[MetricReader] = []
    for name in _exporters("METRICS"):
        if name == "prometheus":
            host = os.environ.get("OTEL_EXPORTER_PROMETHEUS_HOST", "localhost")
            metrics_listen = (
                metrics_listen or f"{host}:{os.environ.get('OTEL_EXPORTER_PROMETHEUS_PORT', _PROMETHEUS_PORT)}"
            )
            continue
        sink = _usable("metrics", ConsoleMetricExporter if name == "console" else _otlp_metrics)
        if sink is not None:
            readers.append(PeriodicExportingMetricReader(sink))
    if metrics_listen:
        readers.append(_prometheus(metrics_listen))
    trace.set_tracer_provider(tracer_provider)
    metrics.set_meter_provider(MeterProvider(resource=resource, metric_readers=readers, shutdown_on_exit=False))
    instruments.init_counters(service)


def shutdown() -> None:
    """Send what is left. A collector that cannot be reached delays the end by at most 3 s."""
    ends = [
        threading.Thread(target=provider.shutdown, name="telemetry-shutdown", daemon=True)
        for provider in (trace.get_tracer_provider(), metrics.get_meter_provider())
        if isinstance(provider, TracerProvider | MeterProvider)
    ]
    for thread in ends:
        thread.start()
    until_s = time.monotonic() + _SHUTDOWN_S
    for thread in ends:
        thread.join(max(0.0, until_s - time.monotonic()))


def _exporters(signal: str) -> list[str]:
    """Names of OTEL_<signal>_EXPORTER; by default OTLP where an endpoint is given, else none."""
    names = os.environ.get(f"OTEL_{signal}_EXPORTER")
    if names is None:
        endpoint = os.environ.get(f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT") or os.environ.get(
            "OTEL_EXPORTER_OTLP_ENDPOINT"
        )
        return ["otlp"] if endpoint else []
    return [name for name in dict.fromkeys(word.strip().lower() for word in names.split(",")) if name != "none"]


def _protocol(signal: str) -> str:
    return (
        os.environ.get(f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL")
        or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
        or "grpc"
    ).lower()


def _otlp_spans() -> SpanExporter:
    if _protocol("TRACES") == "http/protobuf":
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpSpanExporter

        return HttpSpanExporter()
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter(channel_options=_NO_PROXY)


def _otlp_metrics() -> MetricExporter:
    if _protocol("METRICS") == "http/protobuf":
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as HttpMetricExporter

        return HttpMetricExporter()
    from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter

    return OTLPMetricExporter(channel_options=_NO_PROXY)


def log_provider(service: str) -> LoggerProvider:
    """A provider whose records leave by OTLP, for what is no diagnostic log. Raises: SettingError without an endpoint."""
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import BatchLogRecordProcessor, LogRecordExporter

    if not (os.environ.get("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT") or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")):
        raise SettingError("records by OTLP need OTEL_EXPORTER_OTLP_ENDPOINT, or OTEL_EXPORTER_OTLP_LOGS_ENDPOINT")

    def exporter() -> LogRecordExporter:
        if _protocol("LOGS") == "http/protobuf":
            from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter as HttpLogExporter

            return HttpLogExporter()
        from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter

        return OTLPLogExporter(channel_options=_NO_PROXY)

    made = _usable("records", exporter)
    if made is None:
        raise SettingError("records by OTLP: OpenTelemetry's variables cannot be used")
    provider = LoggerProvider(resource=_resource(service), shutdown_on_exit=False)
    provider.add_log_record_processor(BatchLogRecordProcessor(made, schedule_delay_millis=_SPAN_DELAY_MS))
    return provider


def _usable(what: str, make: Callable[[], T]) -> T | None:
    """An exporter; None, with one warning, when its variables cannot be used."""
    try:
        return make()
    except Exception as error:  # the packages raise whatever their parsers do
        log.warning("%s are not exported: OpenTelemetry's variables cannot be used (%s)", what, error)
        return None


def _resource(service: str) -> Resource:
    """Attributes of this process. OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES may add to them and name it."""
    own = {SERVICE_NAME: f"csm-{service}", SERVICE_NAMESPACE: "csm", SERVICE_VERSION: version()}
    given = Resource.create()
    if "OTEL_SERVICE_NAME" in os.environ:
        del own[SERVICE_NAME]
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
