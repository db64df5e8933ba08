"""Callers who leave, ping, or only connect."""

import asyncio
import logging
from contextlib import AsyncExitStack

import pytest

from support.hardened_server import (
    CHECK,
    READINESS,
    SERVING,
    SYNTHESIZE,
    hardened_server,
    health_of,
)
from support.raw_http2 import frame, raw_caller


@pytest.fixture
async def serve():
    async with AsyncExitStack() as stack:
        yield lambda **settings: stack.enter_async_context(hardened_server(**settings))


async def test_a_caller_who_leaves_while_it_is_refused_leaves_no_error_in_the_log(serve, caplog):
    server = await serve()
    async with raw_caller(server.address) as caller:
        for _ in range(300):
            stream = await caller.open(SYNTHESIZE)
            await caller.send(stream, frame(b"\xff\xff"))
            caller.reset(stream)
        await caller.send(stream := await caller.open(CHECK), frame(READINESS.SerializeToString()), end=True)
        assert await caller.status(stream) == 0
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_idle_clients_may_ping(serve):
    """As phones and proxies do to keep a connection, though these do so less often: without a call."""
    server = await serve()
    async with raw_caller(server.address) as caller:
        for _ in range(4):
            await asyncio.sleep(1.2)
            caller.ping()
        await asyncio.sleep(0.5)
        assert caller.pings == 4 and not caller.closed.is_set()
        await caller.send(stream := await caller.open(CHECK), frame(READINESS.SerializeToString()), end=True)
        assert await caller.status(stream) == 0


async def test_connections_are_bounded(serve):
    server = await serve(max_connections=8)
    host, _, port = server.address.rpartition(":")
    silent = [await asyncio.open_connection(host, int(port)) for _ in range(20)]
    reads = {asyncio.ensure_future(reader.read(1)): writer for reader, writer in silent}
    try:
        async with asyncio.timeout(30):
            while sum(read.done() for read in reads) < 12:
                await asyncio.wait([read for read in reads if not read.done()], return_when=asyncio.FIRST_COMPLETED)
            for read, writer in reads.items():
                if not read.done():
                    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
            answers = await asyncio.gather(*reads, return_exceptions=True)
        assert sum(answer not in (b"", None) and not isinstance(answer, OSError) for answer in answers) == 8
    finally:
        for writer in reads.values():
            writer.close()
    assert await health_of(server.address) == SERVING  # a connection that ends makes room for the next
