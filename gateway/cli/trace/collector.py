"""A small OTLP gRPC receiver for one machine: takes what the five services export, keeps the requests' spans.

`csm up` runs it on loopback. Metrics are taken and dropped. So are the gateway's regular questions to
its stages, which belong to no request and would push out the requests' traces.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.trace.v1 import trace_pb2

from gateway.cli.trace.spans import MAX_SPANS, Attributes, Event, Span, TraceStore
from gateway.stage_names import STAGES
from services.runtime.grpc_options import MIB

_HOUSEKEEPING = ("/GetModelInfo", "/GetLoad")
_SCALARS = ("string_value", "int_value", "double_value", "bool_value")


class Collector(trace_service_pb2_grpc.TraceServiceServicer, metrics_service_pb2_grpc.MetricsServiceServicer):
    """Fills `store` while `async with` lasts; `endpoint` is what OTEL_EXPORTER_OTLP_ENDPOINT takes."""

    def __init__(self, store: TraceStore):
        self._store = store
        self.endpoint = ""

    async def __aenter__(self) -> Collector:
        self._server = grpc.aio.server(
            options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 16 * MIB)]
        )
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self._server)
        metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(self, self._server)
        self.endpoint = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        await self._server.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._server.stop(1.0)

    async def Export(self, request, context):
        """The one method of both services; the request's type says which of them was called."""
        if isinstance(request, metrics_service_pb2.ExportMetricsServiceRequest):
            return metrics_service_pb2.ExportMetricsServiceResponse()
        response = trace_service_pb2.ExportTraceServiceResponse()
        for trace_id, span in spans_of(request):
            if not self._store.add(trace_id, span):
                response.partial_success.rejected_spans += 1
                response.partial_success.error_message = f"a trace keeps at most {MAX_SPANS} spans"
        return response


def spans_of(request: trace_service_pb2.ExportTraceServiceRequest) -> Iterator[tuple[str, Span]]:
    """(trace id, span) pairs. A root span with links goes to the traces it is linked to.

    Spans without an id of their own are no OTLP and left out: they could have no parent and no children.
    """
    for resource in request.resource_spans:
        name = _attributes(resource.resource.attributes).get("service.name", "unknown")
        for proto in (proto for scope in resource.scope_spans for proto in scope.spans):
            if proto.name.endswith(_HOUSEKEEPING) or len(proto.trace_id) != 16:
                continue
            if len(proto.span_id) != 8 or not any(proto.span_id):
                continue
            links = () if any(proto.parent_span_id) else proto.links
            linked = {link.trace_id.hex() for link in links if len(link.trace_id) == 16}
            span = _span(_service(str(name)), proto, bool(linked))
            for trace_id in linked or {proto.trace_id.hex()}:
                yield trace_id, span


def _service(name: str) -> str:
    """Our services without their prefix; another's that would then look like ours, such as a `gateway`, marked."""
    own = name.removeprefix("csm-")
    return f"{name} (another's)" if own == name and name in ("gateway", *STAGES) else own


def _span(service: str, proto: trace_pb2.Span, linked: bool) -> Span:
    failed = proto.status.code == trace_pb2.Status.STATUS_CODE_ERROR
    return Span(
        service=service,
        name=proto.name,
        kind=trace_pb2.Span.SpanKind.Name(proto.kind).removeprefix("SPAN_KIND_").lower(),
        span_id=proto.span_id.hex(),
        parent_id=proto.parent_span_id.hex() if any(proto.parent_span_id) else "",  # some write zeros for none
        start_ns=proto.start_time_unix_nano,
        end_ns=proto.end_time_unix_nano,
        error=(proto.status.message or "failed") if failed else "",
        linked=linked,
        events=tuple(Event(e.name, e.time_unix_nano, _attributes(e.attributes)) for e in proto.events),
        attributes=_attributes(proto.attributes),
    )


def _attributes(pairs: Iterable[common_pb2.KeyValue]) -> Attributes:
    """The scalar ones."""
    kinds = ((pair.key, pair.value, pair.value.WhichOneof("value")) for pair in pairs)
    return {key: getattr(value, kind) for key, value, kind in kinds if kind in _SCALARS}
