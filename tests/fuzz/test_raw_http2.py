"""What the fuzzer's own HTTP/2 does when a server ends the connection."""

import asyncio

import pytest

from support.raw_http2 import raw_caller


async def test_a_caller_that_waits_for_the_servers_window_ends_with_the_connection():
    """The server takes no more than the first window of 64 KiB, and closes: without an end, the fuzzer would stop."""
    ending = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        await ending.wait()
        writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, raw_caller(f"127.0.0.1:{server.sockets[0].getsockname()[1]}") as caller:
        stream = await caller.open("/csm.v1.Gateway/Speak")
        sending = asyncio.ensure_future(caller.send(stream, bytes(100_000)))
        await asyncio.sleep(0)
        ending.set()
        with pytest.raises(ConnectionError):
            await asyncio.wait_for(sending, 5)
