"""One process of callers: `python -m gateway.cli.bench.worker`, driven by its parent.

On standard input: one line of base64, a pickle of (the command line, the Plan); later a line "go".
On standard output: JSON, one object a line:

    {"ready": true}                             the gateway answers; waiting for "go"
    {"active": 12, "lag_s": 0.004}              twice a second: utterances under way, the loop's worst delay
    {"record": {…}}                             an utterance has ended, see record.py
    {"done": true}                              all have; the process leaves

SIGTERM ends early: what is under way is cancelled and reported as UNFINISHED.
"""

from __future__ import annotations

import asyncio
import base64
import json
import pickle
import random
import signal
import sys
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import asdict
from itertools import cycle
from types import SimpleNamespace
from typing import Any

from csm.common.v1 import common_pb2

from gateway.cli import connection
from gateway.cli.bench import peers
from gateway.cli.bench.caller import speak
from gateway.cli.bench.dialogue import converse
from gateway.cli.bench.plan import Plan
from gateway.cli.bench.prompts import Prompts
from gateway.cli.bench.record import OK, Record
from gateway.cli.bench.texts import Texts

Emit = Callable[[dict[str, Any]], None]
_TICK_S, _LAG_S = 0.5, 0.02
_RETRY_S = 1.0  # after a failure that named no time


class Callers:
    """All of one process; `run` returns when every utterance has ended."""

    def __init__(self, clients: list[Any], bundle: common_pb2.BundleIdentity, plan: Plan, emit: Emit):
        """clients: SpeechClient each, or peers.Peer where the plan's target is not csm."""
        self._clients, self._bundle, self._plan, self._emit = cycle(clients), bundle, plan, emit
        self._texts, self._random = Texts(plan.seed, plan.texts), random.Random(plan.seed)
        self._prompts = Prompts(plan.prompt_s, plan.shares_prompt, plan.speaker, plan.seed)
        self._began = time.perf_counter()
        self._active, self._lag_s = 0, 0.0

    async def run(self) -> None:
        self._began = time.perf_counter()
        watchers = [asyncio.ensure_future(self._tick()), asyncio.ensure_future(self._watch_loop())]
        try:
            await (self._open_loop() if self._plan.rate_hz is not None else self._closed_loop())
        finally:
            for watcher in watchers:
                watcher.cancel()
            await asyncio.gather(*watchers, return_exceptions=True)
            self._tell()

    def _now(self) -> float:
        return time.perf_counter() - self._began

    async def _closed_loop(self) -> None:
        assert self._plan.streams is not None
        async with asyncio.TaskGroup() as group:
            for index in range(self._plan.streams):
                group.create_task(self._again_and_again(self._plan.ramp_up_s * index / self._plan.streams))

    async def _again_and_again(self, first_s: float) -> None:
        at_s = first_s
        while at_s < self._plan.duration_s:
            await self._until(at_s)
            if self._plan.turns:
                went_well = await self._conversation()
                at_s = self._now() + (0.0 if went_well else _RETRY_S * self._random.uniform(0.75, 1.25))
                continue
            # A caller of a closed loop comes when the one before has ended: this is its intended time.
            record, done_s = await self._one(self._now())
            at_s = done_s if self._plan.listens and record.status == OK else self._now()
            if record.status != OK:
                at_s = self._now() + (record.retry_after_s or _RETRY_S) * self._random.uniform(0.75, 1.25)

    async def _open_loop(self) -> None:
        assert self._plan.rate_hz is not None
        room = asyncio.Semaphore(self._plan.max_in_flight)
        at_s = self._random.expovariate(self._plan.rate_hz)
        async with asyncio.TaskGroup() as group:
            while at_s < self._plan.duration_s:
                await self._until(at_s)
                await room.acquire()
                # Its time counts from when it should have begun, even if this loop comes late.
                task = group.create_task(self._one(at_s))
                task.add_done_callback(lambda _: room.release())
                at_s += self._random.expovariate(self._plan.rate_hz)

    async def _conversation(self) -> bool:
        self._active += 1
        try:
            return await converse(
                next(self._clients), self._bundle, self._plan, self._texts.next, self._now, self._record
            )
        finally:
            self._active -= 1

    def _record(self, record: Record) -> None:
        self._emit({"record": asdict(record)})

    async def _one(self, intended_s: float) -> tuple[Record, float]:
        """(what it came to, when its listener will have heard it)."""
        record = Record(intended_s=intended_s, sent_s=self._now())
        client, plan, text = next(self._clients), self._plan, self._texts.next()
        self._active += 1
        try:
            if plan.target == "csm":
                listener = await speak(client, self._bundle, plan, text, record, self._now, self._prompts.next())
            else:
                listener = await peers.speak(client, plan, text, record, self._now)
            return record, listener.done_s
        finally:
            self._active -= 1
            self._record(record)

    async def _until(self, at_s: float) -> None:
        if (wait_s := at_s - self._now()) > 0:
            await asyncio.sleep(wait_s)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            self._tell()

    def _tell(self) -> None:
        self._emit({"active": self._active, "lag_s": self._lag_s})
        self._lag_s = 0.0

    async def _watch_loop(self) -> None:
        """How late this loop comes to what is due: all reported times are wrong by as much."""
        while True:
            due = time.perf_counter() + _LAG_S
            await asyncio.sleep(_LAG_S)
            self._lag_s = max(self._lag_s, time.perf_counter() - due)


async def _main() -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    args, plan = read_orders(await reader.readline())
    async with AsyncExitStack() as stack:
        count = min(plan.connections, plan.streams or plan.connections)
        bundle = common_pb2.BundleIdentity(sample_rate_hz=peers.RATE_HZ)
        clients: list[Any] = []
        if plan.target == "csm":
            clients = [await stack.enter_async_context(connection.client(args)) for _ in range(count)]
            answers = await asyncio.gather(*(client.voices() for client in clients))
            bundle, plan = answers[0].bundle, plan.within(answers[0])
        else:
            clients = [connection.peer(args, plan.target) for _ in range(count)]
            for client in clients:
                stack.push_async_callback(client.close)
        _emit({"ready": True})
        if await reader.readline() == b"go\n":  # nothing comes when the parent is gone
            await Callers(clients, bundle, plan, _emit).run()
            _emit({"done": True})


def orders(args: SimpleNamespace, plan: Plan) -> bytes:
    """The first line that a worker reads."""
    options = SimpleNamespace(**{name: value for name, value in vars(args).items() if not callable(value)})
    return base64.b64encode(pickle.dumps((options, plan))) + b"\n"


def read_orders(line: bytes) -> tuple[SimpleNamespace, Plan]:
    return pickle.loads(base64.b64decode(line))


def _emit(event: dict[str, Any]) -> None:
    print(json.dumps(event), flush=True)


if __name__ == "__main__":
    try:
        asyncio.run(_main())
    except asyncio.CancelledError:
        _emit({"done": True})
