"""The engine: one plain thread owns the device and moves all slots on, frame by frame.

    plan → release → begin → prefill (a bounded amount) → launch one step for all slots → collect → hand over

A runner on a device may be ahead: step n + 1 is launched before the frames of step n are read, so
that the device never waits for this thread. Frames reach the event loop in one hop a step, whatever
the number of streams. The lock guards the scheduler and is never held while the device works. Knows
neither grpc nor torch: anything that is a runner_api.Runner will do.
"""

from __future__ import annotations

import asyncio
import logging
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from services.backbone.generation import Delivery, Generation
from services.backbone.runner_api import Pending, Runner
from services.backbone.scheduler import Entry, Finish, Plan, Request, Scheduler

log = logging.getLogger(__name__)

_HEARTBEAT_S = 0.5  # an idle engine shows signs of life this often


class Stopping(Exception):
    """The engine takes no more requests: it is stopping, or it has broken."""


@dataclass(frozen=True)
class Load:
    """How busy an engine is. frame_step_s: median of recent steps, 0 before the first.

    blocks_*: of the key-value cache, see blocks.py. prompt_rows, shared_rows: of all prompts admitted
    since the start, and how many of them another prompt had already put into the cache.
    """

    slots_active: int
    slots_capacity: int
    queue_depth: int
    queue_capacity: int
    frame_step_s: float
    blocks_used: int = 0
    blocks_idle: int = 0
    blocks_capacity: int = 0
    prompt_rows: int = 0
    shared_rows: int = 0


class Engine:
    """Runs requests. Made and used on the event loop; `_run` and what it calls is the thread's side."""

    def __init__(
        self,
        runner: Runner,
        scheduler: Scheduler,
        *,
        clock: Callable[[], float] = time.monotonic,
    ):
        # Told each step's time and requests, by the thread.
        self.on_step: Callable[[float, Sequence[Entry]], None] = lambda seconds, entries: None
        self._runner = runner
        self._scheduler = scheduler
        self._clock = clock
        self._wake = threading.Condition()
        self._stopping = False
        self._error: BaseException | None = None
        self._beat_s = clock()
        self._step_s: deque[float] = deque(maxlen=64)
        self._collected_s = clock()
        self._pending: deque[tuple[list[Entry], float, Pending]] = deque()  # launched (when), not collected
        self._outbox: list[Delivery] = []  # the thread's own until it hands them over
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="backbone-engine", daemon=True)

    def start(self) -> None:
        """Start the thread; frames will be handed to the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def submit(self, request: Request) -> Generation:
        """Take a request in. Raises: Busy (come back later), Stopping."""
        generation = Generation(self)
        with self._wake:
            if self._stopping or self._error is not None:
                raise Stopping("the engine is stopping" if self._error is None else f"the engine broke: {self._error}")
            generation.entry = self._scheduler.submit(request, self._clock(), generation)
            self._wake.notify()
        return generation

    def cancel(self, entry: Entry) -> None:
        """End a request; its slot is free before the next frame. Harmless when it has ended."""
        with self._wake:
            self._scheduler.cancel(entry, self._clock())
            self._wake.notify()

    def consumed(self, entry: Entry, frames: int) -> None:
        """A reader took frames off its buffer."""
        with self._wake:
            if self._scheduler.consumed(entry, frames):
                self._wake.notify()

    def load(self) -> Load:
        with self._wake:
            pool = self._scheduler.pool
            return Load(
                self._scheduler.active,
                self._scheduler.slots,
                self._scheduler.waiting,
                self._scheduler.queue_capacity,
                statistics.median(self._step_s) if self._step_s else 0.0,
                blocks_used=pool.used,
                blocks_idle=pool.idle,
                blocks_capacity=pool.blocks,
                prompt_rows=pool.asked_rows,
                shared_rows=pool.hit_rows,
            )

    def is_live(self, stall_limit_s: float) -> bool:
        """False when the thread is gone or has not come round for `stall_limit_s`: only a restart helps."""
        return self._thread.is_alive() and self._clock() - self._beat_s < stall_limit_s

    def now(self) -> float:
        """The clock that deadlines are on."""
        return self._clock()

    async def stop(self, grace_s: float) -> None:
        """Take no more requests, give those under way `grace_s`, then end them; the thread is gone after."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        await asyncio.to_thread(self._thread.join, grace_s)
        with self._wake:
            self._scheduler.cancel_all(self._clock())
            self._wake.notify()
        await asyncio.to_thread(self._thread.join, 10.0)
        if self._thread.is_alive():
            log.error("the engine's thread does not come back from the device; leaving it behind")

    # ---- the thread's side

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        except BaseException as error:  # the device may be in any state: all streams end, a restart is needed
            log.exception("the engine broke")
            with self._wake:
                self._error = error
                self._scheduler.cancel_all(self._clock(), Finish.FAILED)
                plan = self._scheduler.plan(self._clock())
            self._outbox += [Delivery(entry.stream, finish=entry.finish) for entry in plan.ended]
            self._hand_over()

    def _turn(self) -> bool:
        """One round of the loop; False when it was the last."""
        with self._wake:
            self._beat_s = self._clock()
            plan = self._scheduler.plan(self._beat_s)
            if plan.is_idle and not self._pending:
                if self._stopping and not self._scheduler.active and not self._scheduler.waiting:
                    return False
                self._wake.wait(_HEARTBEAT_S if plan.wait_s is None else min(plan.wait_s, _HEARTBEAT_S))
                return True
        self._outbox += [Delivery(entry.stream, finish=entry.finish) for entry in plan.ended]
        for entry in plan.ended:
            self._release(entry)
        for entry in plan.admitted:
            assert entry.slot is not None and entry.table is not None
            self._runner.begin(entry.slot, entry.request.prompt, entry.request.sampling, entry.table)
        self._prefill(plan)
        if plan.step:
            launched_s = self._clock()
            pending = self._runner.launch([entry.slot for entry in plan.step])  # type: ignore[misc]
            self._pending.append((plan.step, launched_s, pending))
        while len(self._pending) > (self._runner.frames_ahead if plan.step else 0):
            self._collect()
        self._hand_over()
        return True

    def _prefill(self, plan: Plan) -> None:
        """Read prompts; those that are read to the end are in this round's step."""
        if not plan.prefill:
            return
        ready = set(self._runner.prefill([entry.slot for entry in plan.prefill]))  # type: ignore[misc]
        for entry in plan.prefill:
            if entry.slot in ready:
                with self._wake:
                    self._scheduler.prefilled(entry, self._clock())
                    if self._scheduler.joins(entry):
                        plan.step.append(entry)
                self._outbox.append(Delivery(entry.stream, is_prefilled=True))
        self._hand_over()  # a step may take long, and some wait for this alone

    def _collect(self) -> None:
        """The frames of the oldest step under way."""
        entries, launched_s, pending = self._pending.popleft()
        codes = pending()
        now = self._clock()
        step_s = now - max(launched_s, self._collected_s)
        self.on_step(step_s, entries)
        with self._wake:
            self._step_s.append(step_s)
            self._collected_s = now
            for entry, frame in zip(entries, codes, strict=True):
                if entry.finish is not None:  # ended while the step was under way; a plan ends it if it was cancelled
                    continue
                is_frame = self._scheduler.stepped(entry, frame, now)
                self._outbox.append(Delivery(entry.stream, frame=frame if is_frame else None, finish=entry.finish))
                if entry.finish is not None:
                    self._release(entry)

    def _release(self, entry: Entry) -> None:
        if entry.slot is not None:
            self._runner.release(entry.slot)

    def _hand_over(self) -> None:
        """All streams' news in one hop to the event loop."""
        if not self._outbox:
            return
        assert self._loop is not None
        deliveries, self._outbox = self._outbox, []
        try:
            self._loop.call_soon_threadsafe(_deliver, deliveries)
        except RuntimeError:  # the loop is closed: nobody is left to read
            log.warning("the event loop is gone; %d deliveries dropped", len(deliveries))


def _deliver(deliveries: list[Delivery]) -> None:
    """On the event loop: every stream gets what is its own."""
    for delivery in deliveries:
        delivery.generation.receive(delivery)
