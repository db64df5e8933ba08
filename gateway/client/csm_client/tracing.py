"""One CLIENT span a call, its context sent along as W3C traceparent, so that calls join the caller's trace."""

from __future__ import annotations

import asyncio
from types import TracebackType

import grpc
from opentelemetry import propagate, trace
from opentelemetry.trace import SpanKind, Status, StatusCode

from csm_client.exceptions import SpeechError

SPEECH_SERVICE = "csm.speech.v1.SpeechService"
Metadata = tuple[tuple[str, str], ...]

_tracer = trace.get_tracer("csm.client")


class CallSpan:
    """`with CallSpan("StreamSynthesize") as span:` around a call that is made with `span.metadata`.

    The span ends with the block, as its exception says: none is OK, a cancelled task or a closed generator CANCELLED.
    """

    def __init__(self, method: str, service: str = SPEECH_SERVICE):
        self._name = f"{service}/{method}"
        self.metadata: Metadata = ()

    def __enter__(self) -> CallSpan:
        attributes = {"rpc.system.name": "grpc", "rpc.method": self._name}
        self._span = _tracer.start_span(self._name, kind=SpanKind.CLIENT, attributes=attributes)
        headers: dict[str, str] = {}
        propagate.inject(headers, trace.set_span_in_context(self._span))
        self.metadata = tuple(headers.items())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, SpeechError):
            code, text = error.code.name, str(error)
        elif isinstance(error, asyncio.CancelledError | GeneratorExit | KeyboardInterrupt):
            code, text = grpc.StatusCode.CANCELLED.name, "the caller left"
        elif error is not None:
            code, text = grpc.StatusCode.UNKNOWN.name, type(error).__name__
        else:
            code, text = grpc.StatusCode.OK.name, ""
        self._span.set_attribute("rpc.response.status_code", code)
        if text:
            self._span.set_attribute("error.type", code)
            self._span.set_status(Status(StatusCode.ERROR, f"{code}: {text}"))
        self._span.end()
