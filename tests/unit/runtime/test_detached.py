"""A read or write goes on when the task that awaits it is cancelled."""

import asyncio
import gc
import os

import grpc
import pytest

from services.runtime.detached import Detached
from support.raw_http2 import frame, raw_caller

MIB = 1024 * 1024


class Operation:
    """Two steps, as a coroutine of gRPC has; `ended` is how it ended."""

    def __init__(self):
        self.steps = [asyncio.get_running_loop().create_future() for _ in range(2)]
        self.ended = None

    async def run(self):
        try:
            first = await self.steps[0]
            self.ended = first, await self.steps[1]
            return self.ended
        except BaseException as error:
            self.ended = error
            raise


async def turn():
    for _ in range(5):
        await asyncio.sleep(0)


async def test_the_result_and_the_error_are_those_of_the_coroutine():
    operation = Operation()
    task = asyncio.ensure_future(_await(operation))
    for step, value in zip(operation.steps, (1, 2), strict=True):
        await turn()
        step.set_result(value)
    assert await task == (1, 2)
    failing = Operation()
    failing.steps[0].set_exception(ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        await _await(failing)


async def test_the_coroutine_may_handle_the_failure_of_its_future():
    future = asyncio.get_running_loop().create_future()

    async def run():
        try:
            await future
        except ValueError:
            return "end"

    async def wait():
        return await Detached(run())

    task = asyncio.ensure_future(wait())
    await turn()
    future.set_exception(ValueError())
    assert await task == "end"


async def _await(operation):
    return await Detached(operation.run())


@pytest.mark.parametrize("done", [0, 1])
async def test_cancelled_it_runs_to_its_end(done):
    operation = Operation()
    task = asyncio.ensure_future(_await(operation))
    await turn()
    for value in range(done):
        operation.steps[value].set_result(value + 1)
        await turn()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert operation.ended is None
    for value in range(done, 2):
        operation.steps[value].set_result(value + 1)
        await turn()
    assert operation.ended == (1, 2)


async def test_cancelled_as_the_result_comes_it_takes_the_result():
    operation = Operation()
    operation.steps[1].set_result(2)
    task = asyncio.ensure_future(_await(operation))
    await turn()
    operation.steps[0].set_result(1)
    task.cancel()  # in the same step of the loop
    with pytest.raises(asyncio.CancelledError):
        await task
    await turn()
    assert operation.ended == (1, 2)


@pytest.mark.parametrize("error", [ValueError(), asyncio.CancelledError()])
async def test_what_it_raises_after_that_is_of_no_interest(error):
    failures = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: failures.append(context))
    operation = Operation()
    task = asyncio.ensure_future(_await(operation))
    await turn()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    operation.steps[0].set_exception(error) if isinstance(error, ValueError) else operation.steps[0].cancel()
    await turn()
    assert isinstance(operation.ended, type(error)) and not failures


async def test_a_timeout_ends_the_wait_alone():
    operation = Operation()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await Detached(operation.run())
    assert operation.ended is None
    for step in operation.steps:
        step.set_result(0)
        await turn()
    assert operation.ended == (0, 0)


async def test_a_message_whose_read_was_cancelled_is_freed():
    """gRPC itself keeps it for good: 30 × 8 MiB here."""
    late = asyncio.Event()

    async def handler(_, context):
        try:
            async with asyncio.timeout(0.05):
                await Detached(context.read())
        except TimeoutError:
            late.set()
            await asyncio.sleep(0.3)  # the rest of the message comes

    details = grpc.method_handlers_generic_handler(
        "csm.Some", {"Method": grpc.stream_stream_rpc_method_handler(handler)}
    )
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", 16 * MIB)])
    server.add_generic_rpc_handlers((details,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    body = frame(bytes(8 * MIB))
    async with raw_caller(f"127.0.0.1:{port}") as caller:

        async def send_late(count):
            for _ in range(count):
                late.clear()
                stream = await caller.open("/csm.Some/Method")
                await caller.send(stream, body[:-1])
                await asyncio.wait_for(late.wait(), 30)
                await caller.send(stream, body[-1:], end=True)
                await caller.status(stream)

        await send_late(2)
        before = rss_mib()
        await send_late(30)
    await server.stop(0)
    gc.collect()
    assert rss_mib() - before < 100


def rss_mib():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MIB
