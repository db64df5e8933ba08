"""Requests that are compressed, late, large, endless or none, and what they must not cost."""

import asyncio
import gc
import time
from contextlib import AsyncExitStack

import grpc
import pytest
from csm.codec.v1 import codec_pb2, codec_pb2_grpc
from csm.speech.v1 import speech_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.runtime import request_reader
from services.runtime.errors import ResourceExhausted
from services.runtime.request_reader import RequestLimits, RequestStream
from support.codec_stub import SERVICE
from support.hardened_server import (
    CHECK,
    MIB,
    SYNTHESIZE,
    hardened_server,
    rss_mib,
)
from support.raw_http2 import frame, raw_caller

EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]


@pytest.fixture
async def serve():
    async with AsyncExitStack() as stack:
        yield lambda **settings: stack.enter_async_context(hardened_server(**settings))


# Compression.


@pytest.mark.parametrize("algorithm", [grpc.Compression.Gzip, grpc.Compression.Deflate])
async def test_compressed_requests_are_refused_unpacked(serve, algorithm):
    server = await serve()
    bomb = health_pb2.HealthCheckRequest(service="x" * 15 * MIB)
    async with grpc.aio.insecure_channel(server.address, compression=algorithm) as channel:
        before = rss_mib()
        for _ in range(8):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await health_pb2_grpc.HealthStub(channel).Check(bomb, timeout=30)
            assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
    gc.collect()
    assert rss_mib() - before < 100


# Requests that are late, large, or none.


async def test_bodies_that_never_end_are_ended_and_few_are_held(serve, monkeypatch):
    monkeypatch.setattr(request_reader, "_SLOW_S", 0.2)
    server = await serve(request_timeout_s=2.0, request_memory_mib=128, max_message_mib=64)
    body = frame(bytes(8 * MIB), announced=30 * MIB)
    async with raw_caller(server.address) as caller:
        began = time.monotonic()
        streams = [await caller.open(SYNTHESIZE) for _ in range(6)]
        sending = [asyncio.ensure_future(caller.send(stream, body)) for stream in streams]
        statuses = [await caller.status(stream) for stream in streams]
        assert time.monotonic() - began < 10
        for task in sending:
            task.cancel()
        await asyncio.gather(*sending, return_exceptions=True)
    # Two may be in arrival; the others made room for them before the time was over.
    assert sorted(statuses) == sorted([EXHAUSTED] * 4 + [grpc.StatusCode.ABORTED.value[0]] * 2)
    assert server.speech.asked == 0


@pytest.mark.parametrize("method", [SYNTHESIZE, f"/{SERVICE}/Decode"])
async def test_messages_of_callers_who_leave_at_once_are_freed(serve, method):
    """gRPC keeps a message for good that arrives for a read which was cancelled."""
    server = await serve()
    async with raw_caller(server.address) as caller:

        async def leave_at_once(count):
            for _ in range(count):
                stream = await caller.open(method)
                await caller.send(stream, frame(bytes(4 * MIB)))
                caller.reset(stream)

        await leave_at_once(5)
        before = rss_mib()
        await leave_at_once(60)
    gc.collect()
    assert rss_mib() - before < 60  # of 240


async def test_a_unary_call_without_a_message_is_answered(serve):
    server = await serve()
    async with raw_caller(server.address) as caller:
        for method in (SYNTHESIZE, f"/{SERVICE}/GetModelInfo", CHECK):
            await caller.send(stream := await caller.open(method), b"", end=True)
            assert await caller.status(stream, 5) != 0


def submessages(count):
    """An utterance of `count` empty context segments: two bytes each."""
    segments = b"\x1a\x00" * count
    length, varint = len(segments), b""
    while length > 127:
        varint += bytes([length & 127 | 128])
        length >>= 7
    return b"\x0a" + varint + bytes([length]) + segments


async def test_a_message_of_countless_fields_is_refused_unparsed(serve):
    server = await serve()
    async with grpc.aio.insecure_channel(server.address) as channel:
        call = channel.unary_unary(SYNTHESIZE, response_deserializer=speech_pb2.SynthesizeResponse.FromString)
        assert (await call(submessages(1000), timeout=30)).trace_id == "1000"
        before, lag_s = rss_mib(), []

        async def watch_the_loop():
            while True:
                began = time.perf_counter()
                await asyncio.sleep(0.01)
                lag_s.append(time.perf_counter() - began)

        watching = asyncio.ensure_future(watch_the_loop())
        data = submessages(15 * MIB)
        for _ in range(3):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call(data, timeout=60)
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert refused.value.details() == "request: has more than 16384 fields"
        watching.cancel()
        assert server.speech.asked == 1
        assert rss_mib() - before < 300  # parsed, one of them is 1 GB


async def test_requests_without_audio_have_a_smaller_limit(serve):
    server = await serve()
    async with grpc.aio.insecure_channel(server.address) as channel:
        call = channel.unary_unary(f"/{SERVICE}/GetModelInfo")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(b"\xfa\x3f" + b"\xfd\xff\xff\x02" + bytes(6 * MIB - 3), timeout=60)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT and "bytes" in refused.value.details()


async def test_requests_in_service_have_a_budget_of_memory(serve):
    server = await serve(request_memory_mib=4, max_message_mib=4)
    async with grpc.aio.insecure_channel(server.address) as channel:
        call = channel.unary_unary(SYNTHESIZE, response_deserializer=speech_pb2.SynthesizeResponse.FromString)
        limits = server._calls._limits
        request = speech_pb2.SynthesizeRequest()
        request.utterance.context.add().audio.wav = bytes(2 * MIB)
        with limits.hold(3 * MIB):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call(request.SerializeToString(), timeout=30)
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert (await call(b"", timeout=30)).trace_id == "0"  # small ones are not counted
        assert (await call(request.SerializeToString(), timeout=30)).trace_id == "1"


async def test_messages_of_streams_count_until_the_next_one():
    limits = RequestLimits(timeout_s=1.0, idle_s=1.0, memory_bytes=4 * MIB, max_message_bytes=4 * MIB)

    class Sent:
        """A call's context of which a stream reads these messages."""

        def __init__(self, *sizes):
            self._messages = [bytes(size) for size in sizes]

        async def read(self):
            return self._messages.pop(0) if self._messages else grpc.aio.EOF

    first, second = (
        RequestStream(Sent(*sizes), limits, None) for sizes in ((3 * MIB, 10, 3 * MIB), (2 * MIB, 2 * MIB, 2 * MIB))
    )
    assert len(await anext(first)) == 3 * MIB
    with pytest.raises(ResourceExhausted, match="4 MiB of them"):
        await anext(second)
    assert len(await anext(first)) == 10  # small ones are not counted
    assert len(await anext(second)) == 2 * MIB
    with pytest.raises(ResourceExhausted):
        await anext(first)
    second.close()
    second.close()  # harmless
    with limits.hold(4 * MIB):
        pass
    assert await anext(first, None) is None


async def test_a_stream_that_says_nothing_more_is_ended_once_its_audio_is_played(serve):
    server = await serve(stream_idle_s=0.2)
    async with grpc.aio.insecure_channel(server.address) as channel:
        for ahead_s in (0.0, 0.5):
            server.codec.idle_from_s = ahead_s
            call = codec_pb2_grpc.CodecServiceStub(channel).Decode()
            began = time.monotonic()
            await call.write(codec_pb2.DecodeRequest(start={}))
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                while await call.read() is not grpc.aio.EOF:
                    pass
            assert ended.value.code() is grpc.StatusCode.ABORTED
            assert time.monotonic() - began > 0.2 + ahead_s
