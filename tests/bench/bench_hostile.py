"""First audio of a well-behaved caller, and the gateway's memory, beside callers who mean harm: docs/security.md's table.

    python tests/bench/bench_hostile.py [--utterances 60]

Five processes on this machine with the bundled voice. Loads are held while the caller speaks, one utterance at a time.
Ends with 1 when the caller waited longer, or the memory grew more, than the bounds in the table say, and when a load was
smaller than its name says.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import os
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import grpc
from csm.speech.v1 import speech_pb2, speech_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from h2.exceptions import ProtocolError

from support.processes import Processes
from support.raw_http2 import frame, raw_caller

MIB = 1024 * 1024
HEALTH, SYNTHESIZE = "/grpc.health.v1.Health", "/csm.speech.v1.SpeechService/Synthesize"
READINESS = health_pb2.HealthCheckRequest(service="readiness")


@dataclass
class Made:
    """count: watches, calls, connections, requests of a load that the gateway has taken."""

    count: int = 0


Load = Callable[[str, Made], AbstractAsyncContextManager[None]]


@asynccontextmanager
async def nothing(address: str, made: Made) -> AsyncIterator[None]:
    yield


@asynccontextmanager
async def watchers(address: str, made: Made) -> AsyncIterator[None]:
    """500 Watch calls, a hundred a connection, all still open at the end."""
    async with AsyncExitStack() as stack:
        watches = []
        for _ in range(5):
            channel = grpc.aio.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)])
            stub = health_pb2_grpc.HealthStub(await stack.enter_async_context(channel))
            watches += [stub.Watch(READINESS) for _ in range(100)]
        await asyncio.gather(*(watch.read() for watch in watches))
        yield
        made.count = sum(not watch.done() for watch in watches)
        for watch in watches:
            watch.cancel()


@asynccontextmanager
async def deaf_watchers(address: str, made: Made) -> AsyncIterator[None]:
    """100 Watch calls whose caller takes no octet."""
    async with raw_caller(address, window=0) as caller:
        watches = [await caller.open(f"{HEALTH}/Watch") for _ in range(100)]
        for watch in watches:
            await caller.send(watch, frame(READINESS.SerializeToString()))
        yield
        made.count = 0 if caller.closed.is_set() else sum(not caller.ended[watch].is_set() for watch in watches)


@asynccontextmanager
async def silent_calls(address: str, made: Made) -> AsyncIterator[None]:
    """5,000 calls that send headers alone, over five connections, again and again."""

    async def keep_silent() -> None:
        async with raw_caller(address) as caller:
            for number in range(1000):
                await caller.open(SYNTHESIZE)
                made.count += not caller.is_going
                if number % 50 == 49:
                    await asyncio.sleep(0.02)
            await asyncio.wait_for(caller.closed.wait(), 12)

    async with _held([keep_silent] * 5):
        await asyncio.sleep(2)
        yield


@asynccontextmanager
async def connections(address: str, made: Made) -> AsyncIterator[None]:
    """1,000 connections at once, half of them without a word; each is opened again when the gateway closes it."""
    host, _, port = address.rpartition(":")

    async def without_a_word() -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            await open_until(_all_of(reader))
        finally:
            writer.close()

    async def without_a_call() -> None:
        async with raw_caller(address) as caller:
            await open_until(caller.closed.wait())

    async def open_until(closed: Coroutine) -> None:
        nonlocal open_now
        open_now += 1
        made.count = max(made.count, open_now)
        try:
            await closed
        finally:
            open_now -= 1

    open_now = 0
    async with _held([without_a_word] * 500 + [without_a_call] * 500):
        await asyncio.sleep(2)
        yield


@asynccontextmanager
async def gzip_bombs(address: str, made: Made) -> AsyncIterator[None]:
    """60 MiB in 61 KB, eight at a time, to the health service. Counts those that are refused unpacked."""
    packed = gzip.compress(health_pb2.HealthCheckRequest(service="x" * 60 * MIB).SerializeToString())
    body = struct.pack(">BI", 1, len(packed)) + packed

    async def send() -> None:
        async with raw_caller(address) as caller:
            while not caller.is_going:
                stream = await caller.open(f"{HEALTH}/Check", (b"grpc-encoding", b"gzip"))
                await caller.send(stream, body, end=True)
                made.count += await caller.status(stream) == grpc.StatusCode.UNIMPLEMENTED.value[0]
                await asyncio.sleep(0.1)

    async with _held([send] * 8):
        await asyncio.sleep(2)
        yield


@asynccontextmanager
async def half_bodies(address: str, made: Made) -> AsyncIterator[None]:
    """50 calls that announce 30 MiB, send 8 MiB and stop, again and again."""
    body = frame(bytes(8 * MIB), announced=30 * MIB)

    async def send() -> None:
        async with raw_caller(address) as caller:
            for _ in range(10):
                await caller.send(await caller.open(SYNTHESIZE), body)
                made.count += not caller.is_going
            await asyncio.wait_for(caller.closed.wait(), 10)

    async with _held([send] * 5):
        await asyncio.sleep(5)
        yield


async def _all_of(reader: asyncio.StreamReader) -> None:
    while await reader.read(65536):
        pass


@asynccontextmanager
async def _held(loads: list[Callable[[], Coroutine]]) -> AsyncIterator[None]:
    """Each load at once, and again when the gateway has ended it."""

    async def again(load: Callable[[], Coroutine]) -> None:
        while True:
            with suppress(OSError, ProtocolError, TimeoutError):
                await load()
            await asyncio.sleep(0.01)

    tasks = [asyncio.ensure_future(again(load)) for load in loads]
    try:
        yield
        for task in tasks:
            if task.done():
                task.result()  # the error of a load that broke
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@dataclass(frozen=True)
class Case:
    """A load and its bounds. size: of the load, at least. first_audio_s: of the slowest utterance. growth_mib: of the
    gateway's memory, at most."""

    name: str
    load: Load
    size: int
    first_audio_s: float
    growth_mib: float


CASES = (
    Case("nothing", nothing, 0, 2.0, 10),
    Case("500 watchers", watchers, 500, 2.0, 40),
    Case("100 watchers that read nothing", deaf_watchers, 100, 2.0, 20),
    Case("5,000 silent calls", silent_calls, 5_000, 4.0, 200),
    Case("1,000 connections", connections, 1_000, 2.0, 60),
    Case("gzip, 61 KB of 60 MiB, eight at a time", gzip_bombs, 50, 4.0, 40),
    Case("50 half bodies of 30 MiB", half_bodies, 50, 4.0, 500),
)


async def first_audio_s(speech: speech_pb2_grpc.SpeechServiceAsyncStub) -> float:
    began = time.monotonic()
    request = speech_pb2.StreamSynthesizeRequest(
        utterance=speech_pb2.Utterance(text="The tide was out.", max_audio_ms=800)
    )
    async for answer in speech.StreamSynthesize(request, timeout=60):
        if answer.WhichOneof("event") == "audio":
            return time.monotonic() - began
    raise AssertionError("no audio came")


def rss_mib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MIB


@asynccontextmanager
async def most_rss_mib(pid: int) -> AsyncIterator[list[float]]:
    """A list whose one value is the most memory that the process has had meanwhile, looked at every 20 ms."""
    most = [rss_mib(pid)]

    async def look() -> None:
        while True:
            most[0] = max(most[0], rss_mib(pid))
            await asyncio.sleep(0.02)

    looking = asyncio.ensure_future(look())
    try:
        yield most
    finally:
        looking.cancel()


async def measure(utterances: int) -> bool:
    """Whether all bounds were kept."""
    print("| Beside | first audio p50 | max | bound | gateway's memory before | most | bound | after | load taken |")
    print("|---|---|---|---|---|---|---|---|---|")
    kept = True
    with tempfile.TemporaryDirectory() as folder:
        async with Processes(Path(folder), {"OTEL_METRICS_EXPORTER": "none"}) as processes:
            address, pid = processes.addresses["gateway"], processes.running["gateway"].pid
            async with grpc.aio.insecure_channel(address) as channel:
                speech = speech_pb2_grpc.SpeechServiceStub(channel)
                for _ in range(3):
                    await first_audio_s(speech)
                for case in CASES:
                    before, made = rss_mib(pid), Made()
                    async with most_rss_mib(pid) as most:
                        async with case.load(address, made):
                            taken_s = [await first_audio_s(speech) for _ in range(utterances)]
                        await asyncio.sleep(3)
                    kept &= max(taken_s) <= case.first_audio_s and most[0] <= before + case.growth_mib
                    kept &= made.count >= case.size
                    print(
                        f"| {case.name} | {statistics.median(taken_s) * 1000:.0f} ms | {max(taken_s) * 1000:.0f} ms "
                        f"| {case.first_audio_s * 1000:.0f} ms | {before:.0f} MiB | {most[0]:.0f} "
                        f"| {before + case.growth_mib:.0f} | {rss_mib(pid):.0f} | {made.count:,} |",
                        flush=True,
                    )
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--utterances", type=int, default=60)
    kept = asyncio.run(measure(parser.parse_args().utterances))
    print("all within the bounds" if kept else "BEYOND THE BOUNDS")
    sys.exit(0 if kept else 1)


if __name__ == "__main__":
    main()
