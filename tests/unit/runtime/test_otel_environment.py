"""OpenTelemetry's variables: empty ones count as unset, unusable ones are one line each."""

import http.server
import os
import subprocess
import sys
import threading

import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

from services.runtime.otel_environment import clean


@pytest.mark.parametrize(
    ("name", "value", "left", "warns"),
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "  ", None, False),
        ("OTEL_PROPAGATORS", "", None, False),
        ("OTEL_PROPAGATORS", "tracecontext, b3multi,jaeger", "tracecontext, b3multi,jaeger", False),
        ("OTEL_PROPAGATORS", "tracecontext,zipkin", "tracecontext", True),
        ("OTEL_PROPAGATORS", "zipkin", None, True),
        ("OTEL_TRACES_EXPORTER", "none", "none", False),
        ("OTEL_TRACES_EXPORTER", "otlp,console", "otlp,console", False),
        ("OTEL_METRICS_EXPORTER", "prometheus", "prometheus", False),
        ("OTEL_METRICS_EXPORTER", "statsd", None, True),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf", "http/protobuf", False),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json", None, True),
        ("OTEL_EXPORTER_OTLP_METRICS_TIMEOUT", "soon", None, True),
        ("OTEL_BSP_SCHEDULE_DELAY", "500", "500", False),
        ("OTEL_BSP_SCHEDULE_DELAY", "-1", None, True),
        ("OTEL_RESOURCE_ATTRIBUTES", "a=b", "a=b", False),
    ],
)
def test_each_variable(name, value, left, warns):
    environ = {name: value, "PATH": "x"}
    warnings = clean(environ)
    assert environ == ({"PATH": "x"} if left is None else {"PATH": "x", name: left})
    assert len(warnings) == warns and all(line.startswith(f"{name}=") and "\n" not in line for line in warnings)


SCRIPT = """
import logging, time
logging.basicConfig(format="%(levelname)s %(message)s")
from services.runtime import telemetry
from opentelemetry import propagate, trace
telemetry.configure("codec")
with trace.get_tracer("test").start_as_current_span("work"):
    headers = {}
    propagate.inject(headers)
print(sorted(headers))
began = time.monotonic()
telemetry.shutdown()
print(time.monotonic() - began < 4)
"""


def run(**environ):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=kept | environ, capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.splitlines(), done.stderr.splitlines()


def test_unusable_variables_do_not_stop_a_process():
    out, err = run(
        OTEL_PROPAGATORS="b3,zipkin",
        OTEL_TRACES_EXPORTER="",
        OTEL_EXPORTER_OTLP_TIMEOUT="x",
        OTEL_EXPORTER_OTLP_COMPRESSION="brotli",
    )
    assert out == ["['b3']", "True"]
    assert [line.split("=")[0] for line in err] == [
        "WARNING OTEL_PROPAGATORS", "WARNING OTEL_EXPORTER_OTLP_TIMEOUT", "WARNING OTEL_EXPORTER_OTLP_COMPRESSION",
    ]  # fmt: skip


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_a_collector_that_cannot_be_reached_delays_the_end_by_three_seconds_at_most(protocol):
    out, _ = run(OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9", OTEL_EXPORTER_OTLP_PROTOCOL=protocol)
    assert out == ["['traceparent']", "True"]


def test_spans_on_the_console():
    out, err = run(OTEL_TRACES_EXPORTER="console", OTEL_METRICS_EXPORTER="none")
    assert '"name": "work"' in "".join(out) and not err


def test_spans_and_metrics_by_http_to_an_endpoint_each():
    received = {}

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            received[self.path] = self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        out, _ = run(
            OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=f"{address}/spans",
            OTEL_EXPORTER_OTLP_METRICS_ENDPOINT=f"{address}/metrics",
            OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf",
            OTEL_EXPORTER_OTLP_COMPRESSION="none",
        )
        server.shutdown()
    assert out[-1] == "True" and set(received) >= {"/spans"}
    spans = trace_service_pb2.ExportTraceServiceRequest.FromString(received["/spans"]).resource_spans
    assert [span.name for each in spans for scope in each.scope_spans for span in scope.spans] == ["work"]
    names = {each.key: each.value.string_value for each in spans[0].resource.attributes}
    assert names["service.name"] == "csm-codec" and names["service.version"]


def test_the_command_says_it_in_one_line_too():
    environ = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    done = subprocess.run(
        [sys.executable, "-m", "gateway.cli", "voices", "--address", "127.0.0.1:9"],
        env=environ | {"OTEL_PROPAGATORS": "zipkin"}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    first, *rest = done.stderr.splitlines()
    assert first.startswith("csm: OTEL_PROPAGATORS='zipkin'") and len(rest) == 1 and done.returncode == 5
