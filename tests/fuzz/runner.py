"""Sends fuzzed calls to five processes, and judges them by what they answer, keep and log."""

from __future__ import annotations

import asyncio
import json
import math
import os
import time
from collections import Counter, defaultdict
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import grpc
from h2.exceptions import ProtocolError

from fuzz.requests import SERVICES, Call, Generator, methods_of, path_of
from support.processes import Processes
from support.raw_http2 import RawCaller, frame, raw_caller

MIB = 1024 * 1024
_RACE = "max_age"  # a connection's age met a call that had just begun: the call was not served
# gRPC loses a stage's status when the gateway's write meets the end of that call. There is no public way to ask for it.
_LOST = "stream was broken off"
_CALLS_A_LOSS = 10_000  # such a loss is that rare
BROKEN = {"NO STATUS", "INTERNAL", "UNKNOWN", "UNAVAILABLE", "DATA_LOSS"}
SETTINGS = {
    "OTEL_METRICS_EXPORTER": "none",
    "OTEL_EXPORTER_OTLP_TIMEOUT": "120",  # their receiver may wait for a processor too: a late export is logged as an error
    "CSM_REQUEST_TIMEOUT_S": "2",
    "CSM_MAX_MESSAGE_MIB": "4",
}
_LEAST_SERVED = 0.03  # of a service's calls; an idle machine serves 0.09 of the gateway's, 0.12 and more of the others'
_ALL_SERVED = 20_000  # with that many calls each method has served some; with fewer, each service one
_MOST_BROKEN_OFF = 0.1  # of a service's calls: its connections' age ends some
_CALLERS = 48
_STARTS_WITHIN_S = 600  # at a low priority, beside tests that use every processor
_MAX_ANSWERS = 50
_TENTHS = 10
_WARM_UP_TENTHS = 3  # caches fill, threads start


@dataclass
class Report:
    """asked: calls that were to be sent. statuses: service → status → calls. methods: method → status → calls. lost: calls whose status gRPC lost between gateway and stage. rss_mib: service → at the start and after each tenth of the calls."""

    asked: int = 0
    calls: int = 0
    seconds: float = 0.0
    statuses: dict[str, Counter[str]] = field(default_factory=partial(defaultdict, Counter))
    methods: dict[str, Counter[str]] = field(default_factory=partial(defaultdict, Counter))
    broken: list[str] = field(default_factory=list)
    lost: int = 0
    rss_mib: dict[str, list[float]] = field(default_factory=partial(defaultdict, list))
    died: list[str] = field(default_factory=list)
    logged: list[str] = field(default_factory=list)

    @property
    def grown(self) -> list[str]:
        """Services whose memory at the end is beyond that after the warm-up, and beyond what noise explains."""
        return [
            name
            for name, rss in self.rss_mib.items()
            if rss[-1] > 1.1 * rss[min(_WARM_UP_TENTHS, len(rss) - 1)] + 40  # a run that met its limit has fewer tenths
        ]

    @property
    def shallow(self) -> list[str]:
        """Services and methods that served too few calls to show anything, and services that broke off too many."""
        found = []
        for name in SERVICES:
            statuses = self.statuses[name]
            calls = statuses.total()
            least = _LEAST_SERVED * calls if self.calls >= _ALL_SERVED else 1
            if not calls or statuses["OK"] < least:
                found.append(f"{name} served {statuses['OK']} of {calls} calls")
            if self.calls >= _ALL_SERVED:
                found += [
                    f"{path} served none" for path in map(path_of, methods_of(name)) if not self.methods[path]["OK"]
                ]
            if statuses["CONNECTION"] > _MOST_BROKEN_OFF * calls + 5:
                found.append(f"{name} broke off the connection of {statuses['CONNECTION']} of {calls} calls")
        return found

    @property
    def is_clean(self) -> bool:
        """Whether all calls were sent and enough of them served, and no process died, had a fault of its own, logged one
        or grew."""
        too_many_lost = self.lost > 1 + self.calls // _CALLS_A_LOSS
        too_few = self.calls < self.asked
        return not (self.died or self.broken or self.logged or self.grown or self.shallow or too_many_lost or too_few)

    def lines(self) -> list[str]:
        found = [
            f"{self.calls} of {self.asked} calls in {self.seconds:.0f} s; a stage's status was lost in {self.lost}"
        ]
        for service, statuses in sorted(self.statuses.items()):
            told = ", ".join(f"{status} {count}" for status, count in statuses.most_common())
            rss = " ".join(f"{mib:.0f}" for mib in self.rss_mib[service])
            found.append(f"{service}: {told}; RSS at each tenth {rss} MiB")
        if served := {path: statuses["OK"] for path, statuses in self.methods.items()}:
            least = min(served, key=served.__getitem__)
            found.append(f"least served: {least}, {served[least]} calls")
        found += self.shallow
        found += [f"{word}: {name}" for word, names in (("died", self.died), ("grew", self.grown)) for name in names]
        return [*found, *self.broken[:20], *self.logged[:20]]


async def fuzz(calls: int, seed: int, folder: Path, *, limit_s: float = math.inf) -> Report:
    """Send `calls` calls, or as many as `limit_s` lets begin. folder: for logs."""
    report, generator = Report(asked=calls), Generator(seed)
    settings = {**SETTINGS, "CSM_VOICES_URL": str(folder / "voices")}
    async with (
        Processes(folder, settings, starts_within_s=_STARTS_WITHIN_S) as processes,
        AsyncExitStack() as stack,
    ):
        channels = {
            name: await stack.enter_async_context(grpc.aio.insecure_channel(processes.addresses[name]))
            for name in SERVICES
        }
        raw = {name: _Connections(processes.addresses[name], stack) for name in SERVICES}
        began, left = time.monotonic(), iter(range(calls))

        def note_memory() -> None:
            for name, mib in _rss_mib(processes).items():
                report.rss_mib[name].append(mib)

        async def caller() -> None:
            for number in left:
                if time.monotonic() - began > limit_s or _dead(processes):
                    return
                if number * _TENTHS // calls >= len(report.rss_mib["gateway"]):
                    note_memory()
                call = generator.call()
                if call.is_stream or number % 20 == 19:
                    status, details = await raw[call.service].run(call)
                else:
                    status, details = await _call(channels[call.service], call)
                report.calls += 1
                report.statuses[call.service][status] += 1
                report.methods[call.method][status] += 1
                if status == "UNAVAILABLE" and details.endswith(_LOST):
                    report.lost += 1
                elif status in BROKEN and _RACE not in details:
                    report.broken.append(f"{call.method}: {status} {details[:200]} ({call.end}, {call.timeout_s} s)")

        note_memory()
        await asyncio.gather(*(caller() for _ in range(_CALLERS)))
        report.seconds = time.monotonic() - began
        report.died = _dead(processes)
        if not report.died:
            await asyncio.gather(*(processes.ready(name, 30) for name in SERVICES))
        note_memory()
    for name in SERVICES:
        report.logged += [
            f"{name}: {line[:400]}" for line in (folder / f"{name}.log").read_text().splitlines() if _is_error(line)
        ]
    return report


def fuzz_one_fleet(calls: int, seed: int, folder: Path, limit_s: float) -> Report:
    """As `fuzz`, for a process of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    return asyncio.run(fuzz(calls, seed, folder, limit_s=limit_s))


class _Connections:
    """Connections of our own HTTP/2 to one server, one after another: their age ends them."""

    def __init__(self, address: str, stack: AsyncExitStack):
        self._address, self._stack, self._caller = address, stack, None
        self._opening = asyncio.Lock()

    async def run(self, call: Call) -> tuple[str, str]:
        try:
            async with self._opening:
                if self._caller is None or self._caller.is_going:
                    self._caller = await self._stack.enter_async_context(raw_caller(self._address))
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
    try:
        await asyncio.wait_for(caller.send(stream, body, end=call.end in ("end", "nothing")), call.timeout_s + 10)
        if call.end in ("cancel", "leave"):
            caller.reset(stream)
            return "CANCELLED", ""
        code = await caller.status(stream, call.timeout_s + 10)
    except TimeoutError:
        return ("CONNECTION" if caller.is_going else "NO STATUS"), ""
    name = next((each.name for each in grpc.StatusCode if each.value[0] == code), str(code))
    return name, caller.headers[stream].get(b"grpc-message", b"").decode()


def _dead(processes: Processes) -> list[str]:
    return [name for name, process in processes.running.items() if process.returncode is not None]


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
