"""What a caller may do before, beside and instead of a call, and what it must not cost the others."""

import asyncio
import gc
import logging
import os
import time

import grpc
import pytest
from csm.codec.v1 import codec_pb2, codec_pb2_grpc
from csm.speech.v1 import speech_pb2, speech_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.runtime import request_reader
from services.runtime.server import Stage, StageServer
from services.runtime.settings import ServerSettings, read
from support.codec_stub import SERVICE, Codec
from support.raw_http2 import frame, raw_caller

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
WATCH, CHECK = "/grpc.health.v1.Health/Watch", "/grpc.health.v1.Health/Check"
SYNTHESIZE = "/csm.speech.v1.SpeechService/Synthesize"
READINESS = health_pb2.HealthCheckRequest(service="readiness").SerializeToString()
MIB = 1024 * 1024
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]


class Speech(speech_pb2_grpc.SpeechServiceServicer):
    """Answers at once with the number of context segments."""

    def __init__(self):
        self.asked = 0

    async def Synthesize(self, request, context):
        self.asked += 1
        return speech_pb2.SynthesizeResponse(trace_id=str(len(request.utterance.context)))


@pytest.fixture
async def serve():
    servers = []

    async def start(**settings):
        codec, speech = Codec(), Speech()

        def register(server):
            codec_pb2_grpc.add_CodecServiceServicer_to_server(codec, server)
            speech_pb2_grpc.add_SpeechServiceServicer_to_server(speech, server)

        stage = Stage(SERVICE, register, is_live=lambda: codec.live)
        server = StageServer(stage, read(ServerSettings, {}, **settings))
        servers.append(server)
        server.address = await server.start()
        server.codec, server.speech = codec, speech
        return server

    yield start
    await asyncio.gather(*(server.stop(0) for server in servers))


def rss_mib():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MIB


async def health_of(address, name="readiness"):
    async with grpc.aio.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        return (await check(health_pb2.HealthCheckRequest(service=name), timeout=5)).status


# Health.


async def test_watchers_that_read_nothing_delay_neither_health_nor_the_end(serve):
    server = await serve()
    async with raw_caller(server.address, window=0) as deaf, grpc.aio.insecure_channel(server.address) as channel:
        for _ in range(3):
            await deaf.send(await deaf.open(WATCH), frame(READINESS))
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service="readiness"))
        assert (await watch.read()).status == SERVING
        async with asyncio.timeout(10):
            while server._health.watchers < 4:
                await asyncio.sleep(0.01)
            await server.drain()
            assert (await watch.read()).status == NOT_SERVING
            assert await health_of(server.address) == NOT_SERVING
            await server.stop(3600)


async def test_a_watcher_that_reads_nothing_is_ended(serve):
    server = await serve(reader_stall_s=0.2)
    async with raw_caller(server.address, window=0) as deaf:
        await deaf.send(stream := await deaf.open(WATCH), frame(READINESS))
        async with asyncio.timeout(10):
            while not server._health.watchers:
                await asyncio.sleep(0.01)
            while server._health.watchers:
                await asyncio.sleep(0.01)
        assert not deaf.data[stream]


async def test_watchers_are_bounded_and_wake_only_for_a_change(serve, monkeypatch):
    server = await serve(max_watchers=50)
    async with grpc.aio.insecure_channel(server.address) as channel:
        stub, name = health_pb2_grpc.HealthStub(channel), health_pb2.HealthCheckRequest(service="readiness")
        watches = [stub.Watch(name) for _ in range(50)]
        for watch in watches:
            assert (await watch.read()).status == SERVING
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.Watch(name).read()
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        woken = []
        for changed in server._health._watchers["readiness"]:
            monkeypatch.setattr(changed, "set", lambda stock=changed.set: (woken.append(1), stock()))
        await asyncio.sleep(0.5)  # five checks of the stage
        assert not woken
        await server.drain()
        assert len(woken) == 50
        for watch in watches:
            assert (await watch.read()).status == NOT_SERVING
            watch.cancel()


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


# Callers who leave, and what they leave in the log.


async def test_a_caller_who_leaves_while_it_is_refused_leaves_no_error_in_the_log(serve, caplog):
    server = await serve()
    async with raw_caller(server.address) as caller:
        for _ in range(300):
            stream = await caller.open(SYNTHESIZE)
            await caller.send(stream, frame(b"\xff\xff"))
            caller.reset(stream)
        await caller.send(stream := await caller.open(CHECK), frame(READINESS), end=True)
        assert await caller.status(stream) == 0
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_idle_clients_may_ping(serve):
    """As phones and proxies do to keep a connection: every five seconds, without a call."""
    server = await serve()
    async with raw_caller(server.address) as caller:
        for _ in range(4):
            await asyncio.sleep(4.2)
            caller.ping()
        await asyncio.sleep(0.5)
        assert caller.pings == 4 and not caller.closed.is_set()
        await caller.send(stream := await caller.open(CHECK), frame(READINESS), end=True)
        assert await caller.status(stream) == 0


async def test_connections_are_bounded(serve):
    server = await serve(max_connections=8)
    host, _, port = server.address.rpartition(":")
    silent = [await asyncio.open_connection(host, int(port)) for _ in range(20)]
    try:
        turned_away = 0
        for reader, _ in silent:
            try:
                async with asyncio.timeout(0.5):
                    turned_away += await reader.read(1) == b""
            except TimeoutError:
                pass  # it waits for the preface
            except ConnectionError:
                turned_away += 1
        assert turned_away == 12
    finally:
        for _, writer in silent:
            writer.close()
    assert await health_of(server.address) == SERVING
