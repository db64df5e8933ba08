"""Watchers of health that read nothing, are many, or come and go."""

import asyncio
from contextlib import AsyncExitStack

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from support.hardened_server import (
    NOT_SERVING,
    READINESS,
    SERVING,
    WATCH,
    hardened_server,
    health_of,
)
from support.raw_http2 import frame, raw_caller


@pytest.fixture
async def serve():
    async with AsyncExitStack() as stack:
        yield lambda **settings: stack.enter_async_context(hardened_server(**settings))


async def test_watchers_that_read_nothing_delay_neither_health_nor_the_end(serve):
    server = await serve()
    async with raw_caller(server.address, window=0) as deaf, grpc.aio.insecure_channel(server.address) as channel:
        for _ in range(3):
            await deaf.send(await deaf.open(WATCH), frame(READINESS.SerializeToString()))
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
        await deaf.send(stream := await deaf.open(WATCH), frame(READINESS.SerializeToString()))
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
