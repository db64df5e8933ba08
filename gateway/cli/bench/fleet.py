"""The worker processes of one point of load: started together, sent off together, read to the end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from gateway.cli.bench.plan import Plan
from gateway.cli.bench.record import Record
from gateway.cli.bench.worker import orders

_READY_S = 60.0
_STOP_S = 10.0
_LINE_BYTES = 4 * 1024 * 1024


class WorkerFailed(Exception):
    """A worker process ended that should not have; the end of what it wrote."""


@dataclass
class Outcome:
    """What a point came to. lag_s: the workers' worst loop delays, one for each half second."""

    plan: Plan
    processes: int
    records: list[Record] = field(default_factory=list)
    lag_s: list[float] = field(default_factory=list)
    wall_s: float = 0.0
    is_complete: bool = True  # False: stopped early


@dataclass
class Progress:
    """A point while it runs."""

    plan: Plan
    began: float
    outcome: Outcome
    active: int = 0

    @property
    def elapsed_s(self) -> float:
        return time.perf_counter() - self.began


async def run(args: SimpleNamespace, plan: Plan, processes: int, show: Callable[[Progress], None]) -> Outcome:
    """Hold the load of `plan`; `show` is called with every news. Cancelled, it returns what there is so far.

    Raises: WorkerFailed.
    """
    parts = plan.shares(processes)
    outcome = Outcome(plan, len(parts))
    workers = [_Worker() for _ in parts]
    try:
        starting = (worker.start(args, part) for worker, part in zip(workers, parts, strict=True))
        try:
            async with asyncio.timeout(_READY_S):  # wait_for would drop what gather says when it is cancelled
                await asyncio.gather(*starting)
        except TimeoutError:
            raise WorkerFailed(f"the bench's worker processes were not ready after {_READY_S:g} s") from None
        progress = Progress(plan, time.perf_counter(), outcome)
        listening = asyncio.gather(
            *(worker.listen(lambda: _sum(workers, progress, show), outcome) for worker in workers)
        )
        try:
            async with asyncio.timeout(plan.longest_s):
                await asyncio.shield(listening)
        except (asyncio.CancelledError, TimeoutError) as why:
            if isinstance(why, asyncio.CancelledError):
                if (task := asyncio.current_task()) is not None:
                    task.uncancel()
            outcome.is_complete = False
            for worker in workers:
                worker.terminate()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_STOP_S):
                    await listening
        outcome.wall_s = progress.elapsed_s
        return outcome
    finally:
        await asyncio.gather(*(worker.close() for worker in workers))


def _sum(workers: list[_Worker], progress: Progress, show: Callable[[Progress], None]) -> None:
    progress.active = sum(worker.active for worker in workers)
    show(progress)


class _Worker:
    def __init__(self) -> None:
        self.active = 0
        self._process: asyncio.subprocess.Process | None = None
        self._errors = tempfile.TemporaryFile()

    async def start(self, args: SimpleNamespace, plan: Plan) -> None:
        """Return when the worker is ready to go."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "gateway.cli.bench.worker",
            start_new_session=True,
            limit=_LINE_BYTES,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )
        self._tell(orders(args, plan))
        event = await self._next()
        if event is None:
            raise self._failed()

    async def listen(self, changed: Callable[[], None], outcome: Outcome) -> None:
        """Say go, then gather until the worker is done."""
        self._tell(b"go\n")
        while (event := await self._next()) is not None:
            match event:
                case {"record": fields}:
                    outcome.records.append(Record(**fields))
                case {"active": active, "lag_s": lag_s}:
                    self.active = active
                    outcome.lag_s.append(lag_s)
                case {"done": _}:
                    return
            changed()
        raise self._failed()

    def _tell(self, line: bytes) -> None:
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.write(line)

    async def _next(self) -> dict[str, Any] | None:
        assert self._process is not None and self._process.stdout is not None
        line = await self._process.stdout.readline()
        return json.loads(line) if line.endswith(b"\n") else None

    def terminate(self) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()

    async def close(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.communicate()
        self._errors.close()

    def _failed(self) -> WorkerFailed:
        self._errors.seek(0)
        words = self._errors.read().decode(errors="replace").strip().splitlines()[-1:] or ["(it said nothing)"]
        return WorkerFailed(f"a worker process of the bench ended: {words[0]}")
