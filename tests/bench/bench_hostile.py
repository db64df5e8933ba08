"""First audio of a well-behaved caller, and the gateway's memory, beside callers who mean harm: docs/security.md's table.

    python tests/bench/bench_hostile.py [--utterances 20]

Five processes on this machine with the bundled voice. Loads are held while the caller speaks, one utterance at a time.
Ends with 1 when the caller waited longer, or the memory grew more, than the bounds in the table say.
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
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import grpc
from csm.speech.v1 import speech_pb2, speech_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from support.processes import Processes
from support.raw_http2 import frame, raw_caller

MIB = 1024 * 1024
HEALTH, SYNTHESIZE = "/grpc.health.v1.Health", "/csm.speech.v1.SpeechService/Synthesize"
READINESS = health_pb2.HealthCheckRequest(service="readiness")
Load = Callable[[str], AbstractAsyncContextManager[None]]


@asynccontextmanager
async def nothing(address: str) -> AsyncIterator[None]:
    yield


@asynccontextmanager
async def watchers(address: str) -> AsyncIterator[None]:
    """500 Watch calls, a hundred a connection."""
    async with AsyncExitStack() as stack:
        for _ in range(5):
            channel = grpc.aio.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)])
            stub = health_pb2_grpc.HealthStub(await stack.enter_async_context(channel))
            watches = [stub.Watch(READINESS) for _ in range(100)]
            await asyncio.gather(*(watch.read() for watch in watches))
            for watch in watches:
                stack.callback(watch.cancel)
        yield


@asynccontextmanager
async def deaf_watchers(address: str) -> AsyncIterator[None]:
    """100 Watch calls whose caller takes no octet."""
    async with raw_caller(address, window=0) as caller:
        for _ in range(100):
            await caller.send(await caller.open(f"{HEALTH}/Watch"), frame(READINESS.SerializeToString()))
        yield


@asynccontextmanager
async def silent_calls(address: str) -> AsyncIterator[None]:
    """5,000 calls that send headers alone, over five connections, again and again."""

    async def keep_silent() -> None:
        while True:
            with suppress(Exception):
                async with raw_caller(address) as caller:
                    for number in range(1000):
                        await caller.open(SYNTHESIZE)
                        if number % 50 == 49:
                            await asyncio.sleep(0.02)
                    await asyncio.wait_for(caller.closed.wait(), 12)

    async with _tasks([keep_silent() for _ in range(5)]):
        await asyncio.sleep(2)
        yield


@asynccontextmanager
async def connections(address: str) -> AsyncIterator[None]:
    """1,000 connections, half of them without a word."""
    host, _, port = address.rpartition(":")
    async with AsyncExitStack() as stack:
        for _ in range(500):
            _, writer = await asyncio.open_connection(host, int(port))
            stack.callback(writer.close)
        for _ in range(500):
            await stack.enter_async_context(raw_caller(address))
        yield


@asynccontextmanager
async def gzip_bombs(address: str) -> AsyncIterator[None]:
    """60 MiB in 61 KB, eight at a time, to the health service."""
    packed = gzip.compress(health_pb2.HealthCheckRequest(service="x" * 60 * MIB).SerializeToString())
    body = struct.pack(">BI", 1, len(packed)) + packed

    async def send() -> None:
        async with raw_caller(address) as caller:
            while not caller.is_going:
                stream = await caller.open(f"{HEALTH}/Check", (b"grpc-encoding", b"gzip"))
                await caller.send(stream, body, end=True)
                await caller.status(stream)
                await asyncio.sleep(0.1)

    async def again() -> None:
        while True:
            with suppress(Exception):
                await send()

    async with _tasks([again() for _ in range(8)]):
        await asyncio.sleep(2)
        yield


@asynccontextmanager
async def half_bodies(address: str) -> AsyncIterator[None]:
    """50 calls that announce 30 MiB, send 8 MiB and stop."""
    body = frame(bytes(8 * MIB), announced=30 * MIB)

    async def send() -> None:
        while True:
            with suppress(Exception):
                async with raw_caller(address) as caller:
                    for _ in range(10):
                        await caller.send(await caller.open(SYNTHESIZE), body)
                    await asyncio.wait_for(caller.closed.wait(), 10)

    async with _tasks([send() for _ in range(5)]):
        await asyncio.sleep(5)
        yield


@asynccontextmanager
async def _tasks(coroutines: list) -> AsyncIterator[None]:
    tasks = [asyncio.ensure_future(each) for each in coroutines]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@dataclass(frozen=True)
class Case:
    """A load and its bounds. first_audio_s: of the slowest utterance. growth_mib: of the gateway's memory, at most."""

    name: str
    load: Load
    first_audio_s: float
    growth_mib: float


CASES = (
    Case("nothing", nothing, 2.0, 10),
    Case("500 watchers", watchers, 2.0, 40),
    Case("100 watchers that read nothing", deaf_watchers, 2.0, 20),
    Case("5,000 silent calls", silent_calls, 4.0, 200),
    Case("1,000 connections", connections, 2.0, 60),
    Case("gzip, 61 KB of 60 MiB, eight at a time", gzip_bombs, 4.0, 40),
    Case("50 half bodies of 30 MiB", half_bodies, 4.0, 500),
)


async def first_audio_s(speech: speech_pb2_grpc.SpeechServiceStub) -> float:
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


async def measure(utterances: int) -> bool:
    """Whether all bounds were kept."""
    print("| Beside | first audio p50 | max | bound | gateway's memory before | most | bound | after |")
    print("|---|---|---|---|---|---|---|---|")
    kept = True
    with tempfile.TemporaryDirectory() as folder:
        async with Processes(Path(folder), {"OTEL_METRICS_EXPORTER": "none"}) as processes:
            address, pid = processes.addresses["gateway"], processes.running["gateway"].pid
            async with grpc.aio.insecure_channel(address) as channel:
                speech = speech_pb2_grpc.SpeechServiceStub(channel)
                for _ in range(3):
                    await first_audio_s(speech)
                for case in CASES:
                    before, most, taken_s = rss_mib(pid), 0.0, []
                    async with case.load(address):
                        for _ in range(utterances):
                            taken_s.append(await first_audio_s(speech))
                            most = max(most, rss_mib(pid))
                    await asyncio.sleep(3)
                    kept &= max(taken_s) <= case.first_audio_s and most <= before + case.growth_mib
                    print(
                        f"| {case.name} | {statistics.median(taken_s) * 1000:.0f} ms | {max(taken_s) * 1000:.0f} ms "
                        f"| {case.first_audio_s * 1000:.0f} ms | {before:.0f} MiB | {most:.0f} "
                        f"| {before + case.growth_mib:.0f} | {rss_mib(pid):.0f} |",
                        flush=True,
                    )
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--utterances", type=int, default=20)
    kept = asyncio.run(measure(parser.parse_args().utterances))
    print("all within the bounds" if kept else "BEYOND THE BOUNDS")
    sys.exit(0 if kept else 1)


if __name__ == "__main__":
    main()
