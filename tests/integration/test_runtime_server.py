"""The life of a server and the spans of its calls, seen with the standard health and reflection clients."""

import asyncio

import grpc
import pytest
from csm.codec.v1 import codec_pb2, codec_pb2_grpc
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from opentelemetry.trace import SpanKind, StatusCode

from services.runtime.errors import InvalidArgument, ResourceExhausted, UnavailableError
from services.runtime.server import Stage, StageServer
from services.runtime.settings import ServerSettings, SettingError, read
from support.channels import open_channel
from support.codec_stub import SERVICE, Codec

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
async def served():
    codec = Codec()
    stage = Stage(
        SERVICE,
        lambda server: codec_pb2_grpc.add_CodecServiceServicer_to_server(codec, server),
        is_live=lambda: codec.live,
    )
    server = StageServer(stage, read(ServerSettings, {}))
    address = await server.start()
    yield codec, server, address
    await server.stop(0)


async def health_of(address, name):
    async with grpc.aio.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return (await stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=5)).status


async def test_health_names_liveness_and_readiness_apart(served):
    codec, server, address = served
    for name in ("liveness", "readiness", "", SERVICE):
        assert await health_of(address, name) == SERVING
    await server.drain()
    assert await health_of(address, "liveness") == SERVING
    assert await health_of(address, "readiness") == NOT_SERVING
    codec.live = False
    await asyncio.wait_for(server.dead.wait(), 5)
    assert await health_of(address, "liveness") == NOT_SERVING


async def test_readiness_is_measured_as_health_says_it(metrics):
    ready = False

    async def is_ready():
        return ready

    def measured():
        return {point.attributes["rpc.service"]: point.value for point in metrics().get("csm.ready", ())}

    def stage(service):
        return Stage(service, lambda server: None, is_ready=is_ready)

    codec, twin = (StageServer(stage(SERVICE), read(ServerSettings, {})) for _ in range(2))
    other = StageServer(stage("csm.other.v1.OtherService"), read(ServerSettings, {}))
    assert measured() == {SERVICE: 0, "csm.other.v1.OtherService": 0}
    addresses = [await server.start() for server in (codec, twin, other)]
    try:
        assert measured() == {SERVICE: 0, "csm.other.v1.OtherService": 0}
        ready = True
        async with asyncio.timeout(30):
            for address in addresses:
                async with grpc.aio.insecure_channel(address) as channel:
                    watch = health_pb2_grpc.HealthStub(channel).Watch(
                        health_pb2.HealthCheckRequest(service="readiness")
                    )
                    while (await watch.read()).status != SERVING:
                        pass
                    watch.cancel()
        assert measured() == {SERVICE: 2, "csm.other.v1.OtherService": 1}
        await codec.drain()
        assert measured() == {SERVICE: 1, "csm.other.v1.OtherService": 1}
    finally:
        await asyncio.gather(*(server.stop(0) for server in (codec, twin, other)))
    assert measured() == {SERVICE: 0, "csm.other.v1.OtherService": 0}


async def test_a_watcher_hears_of_the_end_and_does_not_keep_the_server_from_it(served):
    _, server, address = served
    async with grpc.aio.insecure_channel(address) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service="readiness"))
        assert (await watch.read()).status == SERVING
        await server.drain()
        assert (await watch.read()).status == NOT_SERVING
        async with asyncio.timeout(30):
            await server.stop(3600)
            assert await watch.read() is grpc.aio.EOF
        assert await watch.code() is grpc.StatusCode.OK


async def test_a_client_that_knows_only_reflection_can_call(served):
    _, _, address = served

    def call():
        with grpc.insecure_channel(address) as channel:
            database = ProtoReflectionDescriptorDatabase(channel)
            assert SERVICE in database.get_services()
            method = DescriptorPool(database).FindServiceByName(SERVICE).FindMethodByName("GetModelInfo")
            from google.protobuf import message_factory

            answer = message_factory.GetMessageClass(method.output_type)
            ask = message_factory.GetMessageClass(method.input_type)
            rpc = channel.unary_unary(
                f"/{SERVICE}/GetModelInfo",
                request_serializer=ask.SerializeToString,
                response_deserializer=answer.FromString,
            )
            return rpc(ask(), timeout=5)

    assert (await asyncio.to_thread(call)).slots_capacity == 3


async def test_a_stranger_whose_request_does_not_come_is_not_waited_for(served):
    _, _, address = served
    async with grpc.aio.insecure_channel(address) as channel, asyncio.timeout(60):
        silent = [channel.stream_stream(f"/grpc.health.v1.Health/{method}")() for method in ("Check", "Watch")]
        call = channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")()
        await call.write(reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString())
        assert SERVICE.encode() in await call.read()
        assert await call.read() is grpc.aio.EOF  # as if it had asked for no more
        for waiting in silent:
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                await waiting.read()
            assert ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert await health_of(address, "readiness") == SERVING


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (health_pb2.HealthCheckRequest(service="x" * 5000).SerializeToString(), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (b"\xff\xff\xff", grpc.StatusCode.INVALID_ARGUMENT),
    ],
    ids=["more than a name", "no message"],
)
async def test_a_stranger_leaves_no_request_behind_that_is_none(served, caplog, data, code):
    """A Watch of any name lasts as long as its caller likes, and keeps the name."""
    _, _, address = served
    health, reflection = "/grpc.health.v1.Health/", "/grpc.reflection.v1alpha.ServerReflection/"
    async with grpc.aio.insecure_channel(address) as channel, asyncio.timeout(60):
        for method in (f"{health}Check", f"{health}Watch", f"{reflection}ServerReflectionInfo"):
            call = channel.stream_stream(method)()
            await call.write(data)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call.read()
            assert refused.value.code() is code
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_a_port_of_health_alone_takes_no_more_than_a_name():
    settings = read(ServerSettings, {}, listen="127.0.0.1:0", health_listen="127.0.0.1:0")
    server = StageServer(Stage(SERVICE, lambda server: None), settings)
    await server.start()
    try:
        assert await health_of(server.health_address, SERVICE) == SERVING
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await health_of(server.health_address, "x" * 5000)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    finally:
        await server.stop(0)


async def test_health_knows_names_and_nothing_else(served):
    _, _, address = served
    with pytest.raises(grpc.aio.AioRpcError) as unknown:
        await health_of(address, "no.such.Service")
    assert unknown.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_crowd_that_comes_at_once_is_answered_to_the_last(served):
    codec, _, address = served
    async with grpc.aio.insecure_channel(address) as channel:
        ask = codec_pb2_grpc.CodecServiceStub(channel).GetModelInfo
        calls = [ask(codec_pb2.GetModelInfoRequest(), timeout=60) for _ in range(2500)]
        codes = [await call.code() for call in calls]
    assert set(codes) == {grpc.StatusCode.OK}
    assert codec.asked == len(codes)


async def test_two_servers_never_share_a_port_unasked(served):
    codec, _, address = served
    twin = StageServer(
        Stage(SERVICE, lambda server: codec_pb2_grpc.add_CodecServiceServicer_to_server(codec, server)),
        read(ServerSettings, {}, listen=address),
    )
    with pytest.raises(SettingError, match=address):
        await twin.start()


async def test_servers_that_are_told_to_share_a_port_both_serve():
    codecs, servers, address = [Codec(), Codec()], [], "127.0.0.1:0"
    try:
        for codec in codecs:
            stage = Stage(
                SERVICE, lambda server, codec=codec: codec_pb2_grpc.add_CodecServiceServicer_to_server(codec, server)
            )
            server = StageServer(stage, read(ServerSettings, {}, listen=address, share_port=True))
            address = await server.start()
            servers.append(server)
        async with asyncio.timeout(60):
            while not all(codec.asked for codec in codecs):  # the kernel chooses by the connection's own port
                async with grpc.aio.insecure_channel(
                    address, options=[("grpc.use_local_subchannel_pool", 1)]
                ) as channel:
                    stub = codec_pb2_grpc.CodecServiceStub(channel)
                    await stub.GetModelInfo(codec_pb2.GetModelInfoRequest(), timeout=10)
    finally:
        await asyncio.gather(*(server.stop(0) for server in servers))


async def run_one(address, *, timeout=None, cancel=False):
    """One Decode call with one request; how it ended."""
    channel = open_channel(address)
    call = codec_pb2_grpc.CodecServiceStub(channel).Decode(timeout=timeout)
    try:
        await call.write(codec_pb2.DecodeRequest())
        await call.read()
        if cancel:
            call.cancel()
        elif timeout is None:
            await call.done_writing()
            await call.read()
        return await call.code()
    except grpc.aio.AioRpcError as error:
        return error.code()
    finally:
        call.cancel()
        await channel.close()


OK, INVALID, FULL, GONE, BUG = (
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.INTERNAL,
)


@pytest.mark.parametrize(
    ("error", "how", "code", "server_is_at_fault"),
    [
        (None, {}, OK, False),
        (InvalidArgument("frames", "too many"), {}, INVALID, False),
        (ResourceExhausted("full", 1), {}, FULL, False),
        (UnavailableError("leaving"), {}, GONE, True),
        (ZeroDivisionError("bug"), {}, BUG, True),
        (None, {"cancel": True}, grpc.StatusCode.CANCELLED, False),
        (None, {"timeout": 0.3}, grpc.StatusCode.DEADLINE_EXCEEDED, False),  # its own fault
    ],
    ids=["success", "refusal", "overload", "unavailable", "crash", "cancel", "deadline"],
)
async def test_spans_end_with_the_right_status(served, spans, error, how, code, server_is_at_fault):
    codec, _, address = served
    codec.error = error
    assert await run_one(address, **how) is code
    await asyncio.wait_for(codec.closed.wait(), 5)

    def ended(kind):
        return [span for span in spans() if span.kind is kind]

    async with asyncio.timeout(5):
        while not (ended(SpanKind.CLIENT) and ended(SpanKind.SERVER)):
            await asyncio.sleep(0.01)
    (client,), servers = ended(SpanKind.CLIENT), ended(SpanKind.SERVER)
    assert client.attributes["rpc.response.status_code"] == code.name
    assert client.status.status_code is (StatusCode.UNSET if code is OK else StatusCode.ERROR)
    for server in servers:  # a retried call has several
        assert server.parent.span_id == client.context.span_id
        assert server.context.trace_id == client.context.trace_id
        assert server.attributes["rpc.response.status_code"] == code.name
        assert server.status.status_code is (StatusCode.ERROR if server_is_at_fault else StatusCode.UNSET)
        assert server.attributes["rpc.method"] == f"{SERVICE}/Decode"


async def test_health_checks_leave_no_spans(served, spans):
    _, _, address = served
    await health_of(address, "readiness")
    channel = open_channel(address)
    await codec_pb2_grpc.CodecServiceStub(channel).GetModelInfo(
        codec_pb2.GetModelInfoRequest(), wait_for_ready=True, timeout=5
    )
    await channel.close()
    assert not spans()
