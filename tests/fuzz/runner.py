"""Sends fuzzed calls to five processes, and judges them by what they answer, keep and log."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from h2.exceptions import ProtocolError

from fuzz.requests import SERVICES, Call, Generator
from support.processes import Processes
from support.raw_http2 import RawCaller, frame, raw_caller

MIB = 1024 * 1024
# A connection's age met a call that had just begun; a deadline met a write, and gRPC lost the stage's status.
_RACES = ("max_age", "stream was broken off")
BROKEN = {"NO STATUS", "INTERNAL", "UNKNOWN", "UNAVAILABLE", "DATA_LOSS"}
SETTINGS = {"OTEL_METRICS_EXPORTER": "none", "CSM_REQUEST_TIMEOUT_S": "2", "CSM_MAX_MESSAGE_MIB": "4"}
_CALLERS = 24
_MAX_ANSWERS = 50
_WARM_UP = 0.25  # of the calls: caches fill, threads start


@dataclass
class Report:
    """statuses: service → status → calls. rss_mib: service → (after the warm-up, at the end)."""

    calls: int
    seconds: float = 0.0
    statuses: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    broken: list[str] = field(default_factory=list)
    rss_mib: dict[str, tuple[float, float]] = field(default_factory=dict)
    died: list[str] = field(default_factory=list)
    logged: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        found = [f"{self.calls} calls in {self.seconds:.0f} s"]
        for service, statuses in sorted(self.statuses.items()):
            before, after = self.rss_mib[service]
            told = ", ".join(f"{status} {count}" for status, count in statuses.most_common())
            found.append(f"{service}: {told}; RSS {before:.0f} → {after:.0f} MiB")
        return [*found, *(f"died: {name}" for name in self.died), *self.broken[:20], *self.logged[:20]]


async def fuzz(calls: int, seed: int, folder: Path) -> Report:
    """Send `calls` calls. folder: for logs."""
    report, generator = Report(calls), Generator(seed)
    async with Processes(folder, SETTINGS) as processes, AsyncExitStack() as stack:
        channels = {
            name: await stack.enter_async_context(grpc.aio.insecure_channel(processes.addresses[name]))
            for name in SERVICES
        }
        raw = {name: _Connections(processes.addresses[name], stack) for name in SERVICES}
        before: Mapping[str, float] = {}
        began, left = time.monotonic(), iter(range(calls))

        async def caller() -> None:
            nonlocal before
            for number in left:
                call = generator.call()
                if not before and number >= calls * _WARM_UP:
                    before = _rss_mib(processes)
                if call.is_stream or number % 20 == 19:
                    status, details = await raw[call.service].run(call)
                else:
                    status, details = await _call(channels[call.service], call)
                report.statuses[call.service][status] += 1
                if status in BROKEN and not any(words in details for words in _RACES):
                    report.broken.append(f"{call.method}: {status} {details[:200]} ({call.end}, {call.timeout_s} s)")

        await asyncio.gather(*(caller() for _ in range(_CALLERS)))
        report.seconds = time.monotonic() - began
        await asyncio.gather(*(processes.ready(name, 30) for name in SERVICES))
        after = _rss_mib(processes)
        report.rss_mib = {name: (before.get(name, 0.0), after[name]) for name in SERVICES}
        report.died = [name for name, process in processes.running.items() if process.returncode is not None]
    for name in SERVICES:
        report.logged += [
            f"{name}: {line[:400]}" for line in (folder / f"{name}.log").read_text().splitlines() if _is_error(line)
        ]
    return report


class _Connections:
    """Connections of our own HTTP/2 to one server, one after another: their age ends them."""

    def __init__(self, address: str, stack: AsyncExitStack):
        self._address, self._stack, self._caller = address, stack, None
        self._opening = asyncio.Lock()

    async def run(self, call: Call) -> tuple[str, str]:
        async with self._opening:
            if self._caller is None or self._caller.is_going:
                self._caller = await self._stack.enter_async_context(raw_caller(self._address))
        try:
            return await _raw_call(self._caller, call)
        except (ConnectionError, ProtocolError):
            self._caller = None
            return "CONNECTION", ""


async def _call(channel: grpc.aio.Channel, call: Call) -> tuple[str, str]:
    """Status and details of a call with one request."""
    running = channel.unary_stream(call.method)(call.messages[0], timeout=call.timeout_s, metadata=call.metadata)
    try:
        if call.end == "cancel":
            await asyncio.sleep(0)
            running.cancel()
        answers = 0
        while await running.read() is not grpc.aio.EOF:
            answers += 1
            if answers == (1 if call.end == "leave" else _MAX_ANSWERS):
                running.cancel()
                break
        return (await running.code()).name, await running.details() or ""
    except grpc.aio.AioRpcError as error:
        return error.code().name, error.details() or ""
    except asyncio.CancelledError:
        if asyncio.current_task().cancelling():
            raise
        return "CANCELLED", ""
    finally:
        running.cancel()


async def _raw_call(caller: RawCaller, call: Call) -> tuple[str, str]:
    """As `_call`, by our own HTTP/2: gRPC's client makes INTERNAL of a write that meets the end of its call."""
    metadata = [(name.encode(), value.encode()) for name, value in call.metadata]
    metadata += [(b"grpc-timeout", b"%dm" % (call.timeout_s * 1000)), (b"x-odd", b"\x80")]
    if call.end == "nothing":
        metadata += [(b"authorization", b"Bearer \xff\xfe")]
    stream = await caller.open(call.method, *metadata)
    body = b"".join(map(frame, call.messages))
    if call.end == "half":
        body = frame(body, announced=len(body) + 1000)
    await asyncio.wait_for(caller.send(stream, body, end=call.end in ("end", "nothing")), 10)
    if call.end in ("cancel", "leave"):
        caller.reset(stream)
        return "CANCELLED", ""
    try:
        code = await caller.status(stream, call.timeout_s + 10)
    except TimeoutError:
        return ("CONNECTION" if caller.is_going else "NO STATUS"), ""
    name = next((each.name for each in grpc.StatusCode if each.value[0] == code), str(code))
    return name, caller.headers[stream].get(b"grpc-message", b"").decode()


def _rss_mib(processes: Processes) -> dict[str, float]:
    page = os.sysconf("SC_PAGE_SIZE")
    return {
        name: int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * page / MIB
        for name, process in processes.running.items()
        if process.returncode is None
    }


def _is_error(line: str) -> bool:
    try:
        return json.loads(line).get("level") in ("ERROR", "CRITICAL")
    except ValueError:
        return "Traceback" in line or "Fatal" in line
