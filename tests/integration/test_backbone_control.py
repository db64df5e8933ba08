"""The backbone service when things do not go smoothly: overload, cancels, deadlines, a broken device, traces.

The engine and the servicer are real; the runner makes a frame when the test allows it.
"""

from __future__ import annotations

import asyncio

import grpc
import pytest
from csm.backbone.v1 import backbone_pb2, backbone_pb2_grpc
from csm.common.v1 import common_pb2
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry import trace
from opentelemetry.trace import StatusCode

from services.runtime.errors import rich_details
from support.channels import open_channel
from support.gated_backbone import bench, request

pytestmark = pytest.mark.timeout(60)
METHOD = "csm.backbone.v1.BackboneService/Generate"


async def read_frames(call, count):
    """`started` if it has not come yet, and frames up to the `count`-th."""
    seen = []
    while len(seen) < count:
        message = await call.read()
        assert message is not grpc.aio.EOF
        seen += message.chunk.frames
    return [frame.codes[0] for frame in seen]


async def test_overload_is_refused_before_the_first_message():
    async with bench(slots=1, queue=1) as b:
        running, queued = b.stub.Generate(request(max_frames=1)), b.stub.Generate(request(max_frames=1))
        while (b.engine.load().slots_active, b.engine.load().queue_depth) != (1, 1):
            await asyncio.sleep(0.005)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await b.stub.Generate(request()).read()
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        (retry,) = [d for d in rich_details(refused.value) if isinstance(d, error_details_pb2.RetryInfo)]
        assert 0 < retry.retry_delay.ToNanoseconds() <= 60e9
        load = await b.stub.GetLoad(backbone_pb2.GetLoadRequest())  # other methods go on
        assert (load.slots_active, load.queue_depth) == (1, 1)
        b.runner.allow(2)
        assert await read_frames(running, 1) == [1] and await read_frames(queued, 1) == [1]
        await b.idle()


async def leave_by_cancel(b, call):
    call.cancel()


async def leave_by_closing_the_channel(b, call):
    await b.channel.close()


@pytest.mark.parametrize("leave", [leave_by_cancel, leave_by_closing_the_channel])
async def test_a_caller_who_leaves_at_frame_5_frees_the_slot_within_a_frame(leave):
    async with bench() as b:
        b.runner.allow(5)
        call = b.stub.Generate(request())
        assert await read_frames(call, 5) == [1, 2, 3, 4, 5]
        await leave(b, call)
        await b.left()
        assert b.runner.steps == 5
        b.runner.allow(1)  # the step that the engine may be in
        await b.idle()
        assert b.runner.steps <= 6


async def test_a_caller_who_leaves_without_reading_frees_the_slot():
    """The handler is blocked on a write, and the slot is paused: the caller does not read."""
    async with bench(buffer_frames=64) as b:
        b.runner.open.set()
        call = b.stub.Generate(request(max_frames=480))
        await read_frames(call, 1)
        while b.engine.load().slots_active and b.runner.steps < 64:
            await asyncio.sleep(0.005)
        call.cancel()
        await b.idle()


async def test_a_caller_who_leaves_the_queue_frees_its_place():
    async with bench(slots=1, queue=1) as b:
        running = b.stub.Generate(request())
        while b.engine.load().slots_active < 1:
            await asyncio.sleep(0.005)
        queued = b.stub.Generate(request())
        while b.engine.load().queue_depth < 1:
            await asyncio.sleep(0.005)
        queued.cancel()
        while b.engine.load().queue_depth:
            await asyncio.sleep(0.005)
        running.cancel()
        await b.left()
        b.runner.allow(1)
        await b.idle()


async def test_a_deadline_frees_the_slot():
    async with bench() as b:
        b.runner.allow(2)
        call = b.stub.Generate(request(), timeout=2)
        assert await read_frames(call, 2) == [1, 2]
        with pytest.raises(grpc.aio.AioRpcError) as late:
            await call.read()
        assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await b.left()
        b.runner.allow(1)
        await b.idle()
        assert b.runner.steps <= 3


async def test_speech_that_ends_at_once_is_empty_not_an_error():
    async with bench() as b:
        b.runner.ends_at = 0
        b.runner.open.set()
        messages = [message async for message in b.stub.Generate(request())]
        assert [message.WhichOneof("event") for message in messages] == ["started", "finished"]
        finished = messages[-1].finished
        assert (finished.finish_reason, finished.frames) == (common_pb2.FINISH_REASON_END_OF_SPEECH, 0)


async def test_end_of_speech_sends_what_is_left_of_a_chunk():
    async with bench() as b:
        b.runner.ends_at = 6
        b.runner.open.set()
        messages = [message async for message in b.stub.Generate(request(ramp=(4,)))]
        assert [len(message.chunk.frames) for message in messages[1:-1]] == [4, 2]
        assert messages[-1].finished.frames == 6


async def test_a_broken_device_ends_every_stream_and_liveness():
    async with bench(slots=2, queue=1) as b:
        calls = [b.stub.Generate(request()) for _ in range(3)]
        while b.engine.load().slots_active + b.engine.load().queue_depth < 3:  # any two run, one waits
            await asyncio.sleep(0.005)
        b.runner.broken = True
        b.runner.allow(1)
        for call in calls:
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                while await call.read() is not grpc.aio.EOF:
                    pass
            assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
        await b.server.dead.wait()
        health = health_pb2_grpc.HealthStub(b.channel)
        live = await health.Check(health_pb2.HealthCheckRequest(service="liveness"))
        assert live.status == health_pb2.HealthCheckResponse.NOT_SERVING
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await b.stub.Generate(request()).read()
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_full_queue_leaves_liveness_alone():
    async with bench(slots=1, queue=0) as b:
        running = b.stub.Generate(request())
        await running.read()
        health = health_pb2_grpc.HealthStub(b.channel)
        for name in ("liveness", "readiness"):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_a_truncated_message_is_refused():
    async with bench() as b:
        data = request().SerializeToString()
        call = b.channel.unary_stream(f"/{METHOD}", request_serializer=None, response_deserializer=None)(data[:-1])
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call.read()
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert not b.engine.load().slots_active


async def test_spans_of_a_request(spans):
    async with bench() as b:
        b.runner.open.set()
        channel = open_channel(b.address)
        with trace.get_tracer("test").start_as_current_span("caller") as caller:
            stub = backbone_pb2_grpc.BackboneServiceStub(channel)
            messages = [message async for message in stub.Generate(request(max_frames=3), wait_for_ready=True)]
        assert len(messages) == 5
        await channel.close()
        mine = [span for span in spans() if span.context.trace_id == caller.get_span_context().trace_id]
        (server,) = [span for span in mine if span.name == METHOD and span.kind is trace.SpanKind.SERVER]
        by_name = {span.name: span for span in mine}
        for name in ("queue", "prefill"):
            assert by_name[name].parent.span_id == server.context.span_id
            assert server.start_time <= by_name[name].start_time <= by_name[name].end_time <= server.end_time
        assert by_name["queue"].end_time <= by_name["prefill"].start_time + 1000  # one moment, rounded twice
        assert [event.name for event in server.events] == ["first_frame"]
        assert server.status.status_code is StatusCode.UNSET
        assert server.attributes["csm.finish_reason"] == "FINISH_REASON_MAX_LENGTH"
        assert (server.attributes["csm.prompt_tokens"], server.attributes["csm.prefix_hit_tokens"]) == (
            messages[0].started.prompt_tokens,
            0,
        )


async def test_spans_of_a_request_cancelled_in_the_queue(spans):
    async with bench(slots=1, queue=1) as b:
        running = b.stub.Generate(request())
        await running.read()
        with trace.get_tracer("test").start_as_current_span("caller") as caller:
            channel = open_channel(b.address)
            queued = backbone_pb2_grpc.BackboneServiceStub(channel).Generate(request(), wait_for_ready=True)
            while b.engine.load().queue_depth < 1:
                await asyncio.sleep(0.005)
        queued.cancel()
        trace_id = caller.get_span_context().trace_id

        def found(name):
            return [
                s
                for s in spans()
                if s.context.trace_id == trace_id and s.name == name and s.kind != trace.SpanKind.CLIENT
            ]

        while not found(METHOD):
            await asyncio.sleep(0.005)
        (queue,) = found("queue")
        assert found(METHOD)[0].attributes["csm.finish_reason"] == "FINISH_REASON_CANCELLED"
        assert not found("prefill") and queue.end_time >= queue.start_time
        await channel.close()


async def test_only_a_long_prompt_is_checked_in_a_thread(monkeypatch):
    """A thread starts late beside a busy engine, and a short prompt takes 50 us."""
    checked, to_thread = [], asyncio.to_thread
    monkeypatch.setattr(asyncio, "to_thread", lambda call, *args: checked.append(call) or to_thread(call, *args))
    async with bench() as backbone:
        backbone.runner.open.set()
        for ids, threads in (([1] * 60, 0), ([1] * 70, 1)):
            wanted = request(max_frames=2)
            wanted.prompt[0].text.ids[:] = ids
            assert [answer.WhichOneof("event") async for answer in backbone.stub.Generate(wanted)][-1] == "finished"
            assert len(checked) == threads
            await backbone.idle()
