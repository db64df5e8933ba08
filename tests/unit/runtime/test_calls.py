"""How a call ends, where gRPC cannot be made to do it at will."""

import asyncio
from types import SimpleNamespace

import grpc
import pytest
from opentelemetry import propagate
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased

import services.runtime.calls as calls_module
from services.runtime.calls import CallInterceptor, error_origin
from services.runtime.errors import CallError, InternalError, ResourceExhausted, UnavailableError
from services.runtime.request_reader import RequestLimits


class Leaving:
    """The context of a caller who sends one request and leaves before it hears anything."""

    def __init__(self):
        self.answers = []

    def invocation_metadata(self):
        return ()

    def time_remaining(self):
        return None

    def cancelled(self):
        return False

    done = cancelled

    async def read(self):
        return b""

    async def write(self, response):
        self.answers.append(response)
        raise grpc.aio.InternalError("a send on a dead call")

    async def abort_with_status(self, status):
        self.answers.append(status.code)
        raise grpc.aio.InternalError("Failed grpc_call_start_batch")


@pytest.mark.parametrize("refused", [True, False])
async def test_a_caller_who_leaves_before_the_answer_is_a_cancelled_call(caplog, refused):
    """For which gRPC logs nothing; of any other error it logs a traceback."""

    async def answer(request, context):
        if refused:
            raise ResourceExhausted("full", 1)
        return b""

    async def continuation(details):
        return grpc.unary_unary_rpc_method_handler(answer)

    limits = RequestLimits(timeout_s=5, idle_s=5, memory_bytes=1 << 20, max_message_bytes=1 << 20)
    calls = CallInterceptor(limits, reader_stall_s=5, patient_s=5)
    handler = await calls.intercept_service(continuation, SimpleNamespace(method="/csm.some.Service/Method"))
    context = Leaving()
    with pytest.raises(asyncio.CancelledError):
        await handler.stream_stream(None, context)
    assert context.answers == [grpc.StatusCode.RESOURCE_EXHAUSTED if refused else b""]
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]


async def test_an_answer_may_be_serialized_already():
    async def continuation(details):
        return grpc.unary_unary_rpc_method_handler(None, response_serializer=str.encode)

    limits = RequestLimits(timeout_s=5, idle_s=5, memory_bytes=1 << 20, max_message_bytes=1 << 20)
    calls = CallInterceptor(limits, reader_stall_s=5, patient_s=5)
    handler = await calls.intercept_service(continuation, SimpleNamespace(method="/csm.some.Service/Method"))
    assert [handler.response_serializer(each) for each in ("text", b"text")] == [b"text", b"text"]


CODES = grpc.StatusCode


@pytest.mark.parametrize(
    ("code", "error", "timeout_s", "origin"),
    [
        (CODES.OK, None, None, None),
        (CODES.DEADLINE_EXCEEDED, None, 0.05, "caller"),
        (CODES.DEADLINE_EXCEEDED, None, 600.0, "server"),
        (CODES.DEADLINE_EXCEEDED, CallError(CODES.DEADLINE_EXCEEDED, "", reason="X"), None, "server"),
        (CODES.CANCELLED, None, None, "caller"),
        (CODES.INVALID_ARGUMENT, None, None, "caller"),
        (CODES.RESOURCE_EXHAUSTED, ResourceExhausted("full", 1), None, "load"),
        (CODES.RESOURCE_EXHAUSTED, ResourceExhausted("yours", 1, origin="caller"), None, "caller"),
        (CODES.UNAVAILABLE, UnavailableError("gone"), None, "server"),
        (CODES.INTERNAL, InternalError("bug"), None, "server"),
    ],
)
def test_who_caused_a_status(code, error, timeout_s, origin):
    assert error_origin(code, error, timeout_s, patient_s=30.0) == origin


class Answered(Leaving):
    """The context of a caller who hears its answer. metadata: what it sends along."""

    def __init__(self, *metadata):
        super().__init__()
        self._metadata = metadata

    def invocation_metadata(self):
        return self._metadata

    async def write(self, response):
        self.answers.append(response)


CALLER_TRACE, CALLER_SPAN = 0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331


@pytest.mark.parametrize("trusts", [True, False])
@pytest.mark.parametrize("sampled", [True, False])
async def test_an_edge_may_start_traces_and_link_to_those_of_its_callers(monkeypatch, trusts, sampled):
    exporter, seen = InMemorySpanExporter(), []
    provider = TracerProvider(sampler=ParentBased(ALWAYS_ON), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(calls_module, "_tracer", provider.get_tracer("t"))

    async def answer(request, context):
        headers = {}
        propagate.inject(headers)
        seen.append(headers)
        return b""

    async def continuation(details):
        return grpc.unary_unary_rpc_method_handler(answer)

    limits = RequestLimits(timeout_s=5, idle_s=5, memory_bytes=1 << 20, max_message_bytes=1 << 20)
    calls = CallInterceptor(limits, reader_stall_s=5, patient_s=5, trusts_trace=trusts)
    handler = await calls.intercept_service(continuation, SimpleNamespace(method="/csm.some.Service/Method"))
    sent = f"00-{CALLER_TRACE:032x}-{CALLER_SPAN:016x}-0{int(sampled)}"
    await handler.stream_stream(None, Answered(("traceparent", sent), ("tracestate", "theirs=1"), ("baggage", "a=b")))
    await handler.stream_stream(None, Answered())  # a caller without a trace
    spans = exporter.get_finished_spans()
    theirs, own = spans if sampled or not trusts else (None, *spans)
    assert own.parent is None and not own.links
    if trusts:
        assert (theirs is not None) == sampled  # the caller decides
        assert seen[0]["traceparent"].split("-")[1] == f"{CALLER_TRACE:032x}"
        assert theirs is None or (theirs.parent.span_id == CALLER_SPAN and not theirs.links)
    else:
        assert theirs.parent is None and theirs.context.trace_id != CALLER_TRACE
        assert [(link.context.trace_id, link.context.span_id) for link in theirs.links] == [(CALLER_TRACE, CALLER_SPAN)]
        assert "tracestate" not in seen[0] and "baggage" not in seen[0]
        assert int(seen[0]["traceparent"][-2:], 16) & 1  # sampled, whatever the caller says
