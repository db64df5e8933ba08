"""One replica of a stage: its channel, its running calls, and whether it answers.

A replica is asked for its health twice a second, over the connection that its calls use. So a process that hangs, and
a path that swallows packets, are noticed within 3 s; gRPC's keepalive alone takes 25. Health that says NOT_SERVING
keeps new calls away and lets running ones end.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import random
import time
from collections.abc import Callable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gateway.stage_calls import Rename, StageCall
from services.runtime import instruments

log = logging.getLogger(__name__)

PROBE_EVERY_S = 0.5
PROBE_TIMEOUT_S = 1.0
_PROBES_MISSED_AT_WORK = 6  # when its streams still get something: what they get may have been under way for long
_REFUSAL_HOLDS_S = 0.25
_RECONNECT_EVERY = 6  # missed probes
PROBES_MISSED = 2  # in a row, and the replica is ejected: at most 0.5 + 1.0 + 1.0 s after its last sign of life
# A probe that ended later than this after its deadline says that this process was stopped, not the replica.
_OWN_LAG_S = 0.5


class Health(enum.Enum):
    """What is known of a replica."""

    UNKNOWN = "unknown"  # not asked yet: as good as SERVING
    SERVING = "serving"
    DRAINING = "draining"  # its health says NOT_SERVING; running calls go on
    DOWN = "down"  # cannot be reached
    EJECTED = "ejected"  # reachable, but does not answer


class Replica:
    """`calls` are those that run now. The replica is watched from `start` until `close`."""

    def __init__(
        self,
        stage: str,
        address: str,
        connect: Callable[[], grpc.aio.Channel],
        make_stub: Callable[[grpc.aio.Channel], Any],
        has_alternative: Callable[[Replica], bool],
    ):
        """connect: opens a channel to `address`. has_alternative: whether another replica can take new calls."""
        self.stage, self.address = stage, address
        self.health = Health.UNKNOWN
        self.calls: set[StageCall] = set()
        self._connect, self._make_stub, self._has_alternative = connect, make_stub, has_alternative
        self._retired = False
        self._refused_until_s = 0.0
        self._gave_s = 0.0  # when it last gave something to any stream, on time.monotonic
        self._closing: set[asyncio.Task[None]] = set()
        self._probe_now = asyncio.Event()
        self._prober: asyncio.Task[None] | None = None
        self._open_channel()

    def _open_channel(self) -> None:
        self._channel = self._connect()
        self._stub = self._make_stub(self._channel)
        self._health_stub = health_pb2_grpc.HealthStub(self._channel)

    def start(self) -> None:
        """Begin to watch it."""
        self._prober = asyncio.get_running_loop().create_task(self._watch())

    @property
    def usable(self) -> bool:
        """Whether new calls should go to it."""
        return not self._retired and self.health in (Health.UNKNOWN, Health.SERVING)

    def refused(self) -> None:
        """It has no room: others are asked first for a moment."""
        self._refused_until_s = time.monotonic() + _REFUSAL_HOLDS_S

    @property
    def is_full(self) -> bool:
        """Whether it has refused a call a moment ago. Other gateways' calls are not in `load`."""
        return time.monotonic() < self._refused_until_s

    @property
    def load(self) -> int:
        """Calls of this gateway that it works on."""
        return len(self.calls)

    def call(self, method: str, *request: Any, timeout: float, rename: Rename | None = None) -> StageCall:
        """Start a call of `method`. timeout: seconds. The caller must `close` it."""
        call = StageCall(self.stage, getattr(self._stub, method)(*request, timeout=timeout), rename)
        self.calls.add(call)
        call.add_done_callback(lambda _: self._on_done(call))
        return call

    def suspect(self) -> None:
        """A call failed as if the replica were gone: no new calls until it has answered a probe."""
        if self.usable:
            self.health = Health.DOWN
        self._probe_now.set()

    def retire(self) -> None:
        """Its address has left the name: no new calls; it is closed once its calls have ended."""
        self._retired = True
        if not self.calls:
            self._close_soon(self.close())

    async def close(self) -> None:
        """Stop watching, and end what runs."""
        self._retired = True
        if self._prober is not None and self._prober is not asyncio.current_task():
            self._prober.cancel()
            await asyncio.gather(self._prober, return_exceptions=True)
        await self._channel.close()

    def _on_done(self, call: StageCall) -> None:
        self.calls.discard(call)
        self._gave_s = max(self._gave_s, call.last_message_s)
        if self._retired and not self.calls:
            self._close_soon(self.close())

    def _close_soon(self, closing: Any) -> None:
        task = asyncio.get_running_loop().create_task(closing)
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _watch(self) -> None:
        missed = 0  # probes in a row
        while True:
            self._probe_now.clear()
            self._abandon_stalled()
            health = await self._probe()
            if health is Health.EJECTED:
                missed += 1
                if missed < PROBES_MISSED or (missed < _PROBES_MISSED_AT_WORK and self._works()):
                    continue
                self._eject(reconnect=self.health is not Health.EJECTED or missed % _RECONNECT_EVERY == 0)
            elif health is not None:
                missed = 0
                self._change(health)
            try:
                async with asyncio.timeout(PROBE_EVERY_S * random.uniform(0.8, 1.2)):
                    await self._probe_now.wait()
            except TimeoutError:
                pass

    async def _probe(self) -> Health | None:
        """None when the answer says nothing of the replica; EJECTED when none came in time."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        try:
            answer = await self._health_stub.Check(
                health_pb2.HealthCheckRequest(service="readiness"), timeout=PROBE_TIMEOUT_S
            )
        except grpc.aio.AioRpcError as error:
            match error.code():
                case grpc.StatusCode.DEADLINE_EXCEEDED:
                    is_ours = loop.time() - began_s > PROBE_TIMEOUT_S + _OWN_LAG_S
                    return None if is_ours else Health.EJECTED
                case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.CANCELLED:
                    return Health.DOWN
                case _:  # it answers, though not about its health
                    return Health.SERVING
        serving = answer.status == health_pb2.HealthCheckResponse.SERVING
        return Health.SERVING if serving else Health.DRAINING

    def _can_leave(self, call: StageCall) -> bool:
        """Whether `call` can go on elsewhere; otherwise it waits, since this replica may be slow and no more."""
        return self._has_alternative(self) and call.is_resumable()

    def _works(self) -> bool:
        """Whether a stream got something of it while the last probe waited: then it is slow, not frozen."""
        since_s = time.monotonic() - PROBE_TIMEOUT_S
        return any(call.last_message_s > since_s for call in self.calls)

    def _abandon_stalled(self) -> None:
        """Break off streams that get nothing although the process answers, when another replica can resume them."""
        now_s = time.monotonic()
        self._gave_s = max([self._gave_s, *(call.last_message_s for call in self.calls)])
        for call in tuple(self.calls):
            if (stalled_s := call.stalled_s(now_s, self._gave_s)) is not None and self._can_leave(call):
                log.warning("%s %s gave a stream nothing for %.1f s", self.stage, self.address, stalled_s)
                call.abandon(f"{self.address} gave nothing for {stalled_s:.1f} s")

    def _change(self, health: Health) -> None:
        if self.health is Health.EJECTED and health in (Health.SERVING, Health.DRAINING):
            log.info("%s %s answers again (%s)", self.stage, self.address, health.value)
        self.health = health

    def _eject(self, *, reconnect: bool) -> None:
        """No new calls. Running ones are broken off when they can go on elsewhere, and wait otherwise."""
        if self.health is not Health.EJECTED:
            log.warning("%s %s does not answer: ejected, with %d calls", self.stage, self.address, self.load)
            instruments.ejections.add(1, {"stage": self.stage})
            self.health = Health.EJECTED
        leaving = [call for call in self.calls if self._can_leave(call)]
        waiting = len(self.calls) - len(leaving)
        for call in leaving:
            call.abandon(f"{self.address} has not answered for {PROBES_MISSED * PROBE_TIMEOUT_S:g} s")
        if reconnect and not waiting:  # the connection may be the fault
            self._close_soon(self._channel.close())
            self._open_channel()
