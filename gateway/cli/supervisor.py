"""Several server processes as one: started together, ready together, stopped together."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from csm_client.readiness import wait_ready

from gateway.cli.http_readiness import wait_ready_http

_TAIL_LINES, _TAIL_COLUMNS = 12, 1000


@dataclass(frozen=True)
class Child:
    """One process to run. address: where its health check answers, over gRPC or HTTP. env: on top of our own environment."""

    name: str
    argv: Sequence[str]
    address: str
    env: Mapping[str, str] = field(default_factory=dict)
    speaks_http: bool = False


class ChildDied(Exception):
    """A process ended that should not have. The message says which, how, and its last words."""

    def __init__(self, name: str, code: int, log: Path):
        lines = [line[:_TAIL_COLUMNS] for line in log.read_text(errors="replace").splitlines()[-_TAIL_LINES:]]
        how = f"with exit code {code}" if code >= 0 else f"by {signal.Signals(-code).name}"
        super().__init__("\n".join([f"{name} ended {how}; the end of {log}:", *(f"  {line}" for line in lines)]))
        self.name, self.code, self.log = name, code, log


class Supervisor:
    """Runs `children` while `async with` lasts; what they write goes to `<logs>/<name>.log`.

    On the way out each gets SIGTERM and, `stop_s` later, SIGKILL. They are in sessions of their own,
    so that Ctrl-C in a terminal reaches them through us alone.
    """

    def __init__(self, children: Sequence[Child], logs: Path, *, stop_s: float = 15.0):
        self._children, self._logs, self._stop_s = children, logs, stop_s
        self._processes: dict[str, asyncio.subprocess.Process] = {}

    async def __aenter__(self) -> Supervisor:
        self._logs.mkdir(parents=True, exist_ok=True)
        try:
            for child in self._children:
                with self.log(child.name).open("wb") as log:
                    self._processes[child.name] = await asyncio.create_subprocess_exec(
                        *_dies_with_us(),
                        *child.argv,
                        start_new_session=True,
                        env={**os.environ, "PYTHONUNBUFFERED": "1", **child.env},  # last words stay last in the log
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                    )
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    def log(self, name: str) -> Path:
        """Where the child `name` writes."""
        return self._logs / f"{name}.log"

    async def wait_ready(
        self,
        timeout_s: float,
        on_ready: Callable[[Child, float], None],
        on_wait: Callable[[list[str], float], None] = lambda names, waited_s: None,
        *,
        report_s: float = 30.0,
    ) -> None:
        """Return when all are ready; on_ready hears of each, with its seconds since now.

        on_wait: called every report_s seconds with the names of those that are not ready.

        Raises: ChildDied as soon as one ends; Unavailable after `timeout_s`.
        """
        started = time.monotonic()
        waiting = [child.name for child in self._children]

        async def one(child: Child) -> None:
            wait = wait_ready_http if child.speaks_http else wait_ready
            await wait(child.address, timeout_s, name=f"{child.name} ({child.address})")
            waiting.remove(child.name)
            on_ready(child, time.monotonic() - started)

        everyone: asyncio.Future[Any] = asyncio.gather(*(one(child) for child in self._children))
        watch: asyncio.Future[Any] = asyncio.ensure_future(self.wait_died())
        try:
            while not (everyone.done() or watch.done()):
                await asyncio.wait([everyone, watch], timeout=report_s, return_when=asyncio.FIRST_COMPLETED)
                if not (everyone.done() or watch.done()):
                    on_wait(waiting, time.monotonic() - started)
            if watch.done():
                watch.result()
            everyone.result()
        finally:
            for task in (everyone, watch):
                task.cancel()
            await asyncio.gather(everyone, watch, return_exceptions=True)

    async def wait_died(self) -> NoReturn:
        """Wait for as long as all run. Raises: ChildDied when one ends."""
        waits = {asyncio.ensure_future(process.wait()): name for name, process in self._processes.items()}
        try:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waits:
                task.cancel()
        first = next(iter(done))
        raise ChildDied(waits[first], first.result(), self.log(waits[first]))

    async def stop(self) -> dict[str, int]:
        """Stop all that still run, together; name → exit code, negative for a signal."""
        self._signal(signal.SIGTERM)
        waits = asyncio.gather(*(process.wait() for process in self._processes.values()))
        try:
            await asyncio.wait_for(asyncio.shield(waits), self._stop_s)
        except TimeoutError:
            self.kill()
        except asyncio.CancelledError:
            self.kill()  # a second signal
            raise
        finally:
            codes = await waits
        return dict(zip(self._processes, codes, strict=True))

    def kill(self) -> None:
        """End all that still run at once."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        for process in self._processes.values():
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(number)


def _dies_with_us() -> list[str]:
    """A command in front of a child's own that has the kernel end it should we be killed (Linux)."""
    command = ["setpriv", "--pdeathsig", "TERM"]
    if shutil.which(command[0]) and subprocess.run([*command, "true"], capture_output=True).returncode == 0:
        return command
    return []
