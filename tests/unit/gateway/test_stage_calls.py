"""What a stage's call failed of, when gRPC's own words stand where the stage's status should."""

import asyncio
from contextlib import asynccontextmanager

import grpc
import pytest

from gateway.stage_calls import StageCall
from services.runtime.errors import CallError


@asynccontextmanager
async def calling(handler, timeout_s):
    """A StageCall of a method that `handler` serves."""
    server = grpc.aio.server()
    method = grpc.stream_stream_rpc_method_handler(handler)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("a.B", {"C": method}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = StageCall("codec", channel.stream_stream("/a.B/C")(timeout=timeout_s))
        yield call
        await call.close()
    await server.stop(0)


async def write_until_it_fails(call):
    with pytest.raises(CallError) as caught:
        while True:
            await call.write(bytes(20_000))
    return caught.value


@pytest.mark.parametrize("attempt", range(5))
async def test_a_deadline_that_meets_a_write_is_a_deadline(attempt):
    async def reads_nothing(requests, context):
        await context.read()
        await context.read()
        while not context.done():
            await asyncio.sleep(0.01)

    async with calling(reads_nothing, 0.2) as call:
        assert (await write_until_it_fails(call)).code is grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.INTERNAL])
async def test_a_stage_that_goes_away_after_it_has_finished_loses_nothing(code):
    async def finishes(requests, context):
        yield b"finished"
        await context.abort(code, "gone")

    async with calling(finishes, 30) as call:
        assert await call.read() == b"finished"
        if code is grpc.StatusCode.INTERNAL:
            with pytest.raises(CallError, match="gone"):
                await call.end()
        else:
            await call.end()
