"""The life of a server process: load, serve, drain, stop. The same for all five.

    settings → logs and telemetry → the stage is opened (models load) → serving, readiness on
    SIGTERM → readiness off → CSM_DRAIN_S → no new calls, CSM_GRACE_S for running ones → spans flushed

Health is the standard service, with three names: `liveness` (off when the stage is stuck or broken
beyond repair), `readiness` (off while draining or when the stage cannot serve now) and "" (readiness).
A full queue is overload, told per call, and touches neither.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, field
from typing import TypeVar

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from services.runtime import instruments, logs, telemetry, tls
from services.runtime.calls import CallInterceptor
from services.runtime.grpc_options import MIB, server_options
from services.runtime.health import NOT_SERVING, SERVICE_NAME, SERVING, Health
from services.runtime.public_methods import MAX_REQUEST_BYTES, PublicMethodGuard
from services.runtime.request_reader import RequestLimits
from services.runtime.settings import ServerSettings, SettingError, StartError, as_dict, help_text, read
from services.runtime.version import version

log = logging.getLogger(__name__)
_HEALTH_INTERVAL_S = 0.1
_MAX_MISSED_CHECKS = 10
# A full collection stops every stream of the process for as long as it takes to look at all objects of all streams: 0.1 s
# with hundreds. By default there is one after ten collections of the second generation, every few seconds under load; what
# an utterance leaves needs none.
_COLLECTIONS_BEFORE_A_FULL_ONE = 50
_LAST_STATUS_S = 0.1  # for the statuses of calls that have just ended

S = TypeVar("S", bound=ServerSettings)


async def _always() -> bool:
    return True


@dataclass(frozen=True)
class Stage:
    """What a service hands to its server.

    register: adds the servicer to a server. service: its full name, for reflection and health.
    is_live: False when only a restart helps. is_ready: False when calls would fail now.
    interceptors: run for each call, inside its span. on_stop: called when new calls are refused from now on.
    more_services: full names of what else `register` adds.
    build: what `csm.build.info` says beside the version: bundle, and of a stage with a device also precision and device.
    trusts_trace: whether calls continue their callers' traces. Otherwise each starts one, with a link to the caller's.
    """

    service: str
    register: Callable[[grpc.aio.Server], None]
    is_live: Callable[[], bool] = field(default=lambda: True)
    is_ready: Callable[[], Awaitable[bool]] = field(default=_always)
    interceptors: Sequence[grpc.aio.ServerInterceptor] = ()
    on_stop: Callable[[], None] = field(default=lambda: None)
    more_services: tuple[str, ...] = ()
    build: Mapping[str, str] = field(default_factory=dict)
    trusts_trace: bool = True


class StageServer:
    """A gRPC server with one stage, health and reflection. Tests use it in-process; `main` runs it."""

    def __init__(self, stage: Stage, settings: ServerSettings):
        self._stage, self._settings = stage, settings
        self._draining = False
        self._ready = False  # what health said last
        instruments.observe(self, "csm.ready", lambda server: int(server._ready), {"rpc.service": stage.service})
        build = {"rpc.service": stage.service, "version": version(), **stage.build}
        instruments.observe(self, "csm.build.info", lambda server: 1, build)
        self._missed_checks = 0  # in a row that found the stage not live
        self.dead = asyncio.Event()  # set once the stage is no longer live
        self._monitor: asyncio.Task[None] | None = None
        self._health_server: grpc.aio.Server | None = None
        self.health_address: str | None = None  # of the health checks' own server, once it listens
        self._health = Health(max_watchers=settings.max_watchers, write_timeout_s=settings.reader_stall_s)
        limits = RequestLimits(
            timeout_s=settings.request_timeout_s,
            idle_s=settings.stream_idle_s,
            memory_bytes=settings.request_memory_mib * MIB,
            max_message_bytes=settings.max_message_mib * MIB,
        )
        self._calls = CallInterceptor(
            limits,
            reader_stall_s=settings.reader_stall_s,
            patient_s=settings.patient_deadline_s,
            trusts_trace=stage.trusts_trace,
        )
        self._server = grpc.aio.server(
            interceptors=[PublicMethodGuard(), self._calls, *stage.interceptors],
            options=server_options(
                settings, max_receive_bytes=settings.max_message_mib * MIB, share_port=settings.share_port
            ),
        )
        stage.register(self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            (stage.service, *stage.more_services, SERVICE_NAME, reflection.SERVICE_NAME), self._server
        )

    async def start(self) -> str:
        """Listen; returns `host:port`. Raises: SettingError when the address or its TLS cannot be had."""
        listen = self._settings.listen
        credentials = tls.server_credentials(self._settings)
        if credentials is None and not tls.is_loopback(listen):
            log.warning("serves in plaintext beyond this machine, as %s asks", tls.INSECURE)
        port = _listen(self._server, "CSM_LISTEN", listen, credentials)
        await self._check_stage()
        if self._settings.health_listen:
            self._health_server = grpc.aio.server(
                interceptors=[PublicMethodGuard()],
                options=server_options(self._settings, max_receive_bytes=MAX_REQUEST_BYTES),
            )
            health_pb2_grpc.add_HealthServicer_to_server(self._health, self._health_server)
            health_port = _listen(self._health_server, "CSM_HEALTH_LISTEN", self._settings.health_listen)
            await self._health_server.start()
            self.health_address = f"{self._settings.health_listen.rpartition(':')[0]}:{health_port}"
        await self._server.start()
        self._monitor = asyncio.get_running_loop().create_task(self._monitor_stage())
        return f"{listen.rpartition(':')[0]}:{port}"

    async def drain(self) -> None:
        """Report NOT_SERVING and give balancers CSM_DRAIN_S to notice. Calls still work. Waits for no watcher."""
        self._draining = True
        await self._check_stage()
        await asyncio.sleep(self._settings.drain_s)

    async def stop(self, grace_s: float | None = None) -> None:
        """Refuse new calls at once, give running ones `grace_s` (default: CSM_GRACE_S), then cancel them."""
        if self._monitor is not None:
            self._monitor.cancel()
        self._ready = False
        self._stage.on_stop()
        self._health.close()
        stopped = asyncio.ensure_future(self._server.stop(self._settings.grace_s if grace_s is None else grace_s))
        idle = asyncio.ensure_future(self._calls.wait_until_idle(_LAST_STATUS_S))
        try:
            await asyncio.wait({stopped, idle}, return_when=asyncio.FIRST_COMPLETED)
            if not stopped.done():
                # Only health and reflection calls are left. A watcher that reads nothing would keep the server.
                await self._server.stop(0)
            await stopped
        finally:
            idle.cancel()
        if self._health_server is not None:
            await self._health_server.stop(0)  # last: a draining process is alive to its probes

    async def _monitor_stage(self) -> None:
        while not self.dead.is_set():
            slept = time.perf_counter()
            await asyncio.sleep(_HEALTH_INTERVAL_S)
            instruments.event_loop_lag.record(max(0.0, time.perf_counter() - slept - _HEALTH_INTERVAL_S))
            await self._check_stage()

    async def _check_stage(self) -> None:
        # One failed check is not enough: after a freeze of the whole process, the loop may run before the
        # stage's own thread has shown a sign of life.
        self._missed_checks = 0 if self._stage.is_live() else self._missed_checks + 1
        live = self._missed_checks < _MAX_MISSED_CHECKS
        if not live:
            self.dead.set()
        self._ready = ready = live and not self._draining and await self._stage.is_ready()
        self._health.set("liveness", SERVING if live else NOT_SERVING)
        for name in ("readiness", "", self._stage.service, *self._stage.more_services):
            self._health.set(name, SERVING if ready else NOT_SERVING)


def _listen(
    server: grpc.aio.Server, variable: str, address: str, credentials: grpc.ServerCredentials | None = None
) -> int:
    try:
        if credentials is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise SettingError(f"{variable}={address!r}: cannot listen there ({error})") from error


def main(
    name: str,
    settings_type: type[S],
    open_stage: Callable[[S], AbstractAsyncContextManager[Stage]],
    *,
    start_errors: tuple[type[Exception], ...] = (),
) -> None:
    """Run service `name` until SIGTERM or SIGINT; a second signal ends running calls at once.

    open_stage loads the models (off the event loop) and closes them. Leaves with exit code 1 and one
    line when it cannot start, and with 1 when the stage died: a supervisor then starts a fresh process.
    start_errors: what open_stage raises besides StartError, with a message of one line, when it cannot start.
    A service's `__main__` is this call and nothing else. The command line has nothing but --help, which says what
    can be set; with anything else it leaves with exit code 2.
    """
    argparse.ArgumentParser(
        prog=name,
        description=f"The {name} service of CSM. It reads its settings from the environment:",
        epilog=help_text(settings_type),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args()
    try:
        settings = read(settings_type)
    except SettingError as error:
        sys.exit(f"{name}: cannot start: {error}")
    logs.configure(name, level=settings.log_level, form=settings.log_format)
    try:
        telemetry.configure(name, metrics_listen=settings.metrics_listen)
    except SettingError as error:
        sys.exit(f"{name}: cannot start: {error}")
    try:
        code = asyncio.run(_serve(name, settings, open_stage, start_errors))
    finally:
        telemetry.shutdown()
    logging.shutdown()
    # At an ordinary end Python waits for every thread. One that is stuck in a device's call would keep the process
    # alive, and a supervisor could not restart it.
    os._exit(code)


async def _serve(
    name: str,
    settings: S,
    open_stage: Callable[[S], AbstractAsyncContextManager[Stage]],
    start_errors: tuple[type[Exception], ...],
) -> int:
    log.info("settings %s", json.dumps(as_dict(settings), default=str))
    stopping = asyncio.Event()
    signals = 0

    def on_signal() -> None:
        nonlocal signals
        signals += 1
        stopping.set()
        if signals > 1 and server is not None:
            hurry.append(asyncio.ensure_future(server.stop(0)))

    server: StageServer | None = None
    hurry: list[asyncio.Future[None]] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    try:
        tls.server_credentials(settings)  # errors in them come before models are loaded
        async with open_stage(settings) as stage:
            # Modules and models stay as long as the process. Left among what the garbage collector goes
            # through, they stop every stream for a third of a second each time it does.
            gc.collect()
            gc.freeze()
            gc.set_threshold(*gc.get_threshold()[:2], _COLLECTIONS_BEFORE_A_FULL_ONE)
            server = StageServer(stage, settings)
            address = await server.start()
            log.info("%s serves on %s", name, address)
            dead = asyncio.ensure_future(server.dead.wait())
            asked = asyncio.ensure_future(stopping.wait())
            await asyncio.wait({dead, asked}, return_when=asyncio.FIRST_COMPLETED)
            died = dead.done()
            for task in (dead, asked):
                task.cancel()
            if died:
                log.error("the stage is dead, leaving")
            else:
                log.info("draining")
                await server.drain()
            await server.stop(1.0 if died else None)
            with suppress(asyncio.CancelledError):
                await asyncio.gather(*hurry)
            return 1 if died else 0
    except (StartError, *start_errors) as error:  # type: ignore[misc]  # mypy cannot see that all are exceptions
        log.critical("cannot start: %s", error)
        return 1
