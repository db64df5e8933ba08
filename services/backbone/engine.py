"""The engine: one thread owns the device and advances all slots, frame by frame.

    schedule → release → begin → prefill (a bounded amount) → launch one step for all slots → collect → send events

A runner on a device may be ahead: step n + 1 is launched before the frames of step n are read, so that the device never
waits for this thread. A step's frames go into the streams' buffers; the event loop hears in one hop of those whose
readers have all that they wait for. The lock guards the scheduler and is never held while the device works. Knows
neither grpc nor torch: any runner_api.Runner will do.
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

from services.backbone.frame_rows import rows_of
from services.backbone.frame_stream import FrameStream, StreamEvent
from services.backbone.request import FinishReason, Request, SequenceState
from services.backbone.runner_api import Pending, Runner
from services.backbone.scheduler import Schedule, Scheduler
from services.engine.hand_over import HandOver

log = logging.getLogger(__name__)

_HEARTBEAT_S = 0.5  # an idle engine wakes up this often


class EngineStopped(Exception):
    """The engine takes no more requests: it is stopping, or it has failed."""


@dataclass(frozen=True)
class Load:
    """How busy an engine is. frame_step_s: median time from one frame of all to the next, 0 before the first.

    blocks_*: of the key-value cache, see blocks.py. prompt_tokens, prefix_hit_tokens: of all prompts admitted
    since the start, and how many of them were found in the prefix cache.
    """

    slots_active: int
    slots_capacity: int
    queue_depth: int
    queue_capacity: int
    frame_step_s: float
    blocks_used: int = 0
    blocks_idle: int = 0
    blocks_capacity: int = 0
    prompt_tokens: int = 0
    prefix_hit_tokens: int = 0


class Engine:
    """Runs requests. Created and used on the event loop; `_run` and what it calls are on the thread."""

    def __init__(
        self,
        runner: Runner,
        scheduler: Scheduler,
        *,
        clock: Callable[[], float] = time.monotonic,
    ):
        # Called by the thread after each step of all who are ready, with its requests and its time, that of small steps
        # since the last one included: so often a stream gets a frame.
        self.on_step: Callable[[float, Sequence[SequenceState]], None] = lambda seconds, seqs: None
        self._runner = runner
        self._scheduler = scheduler
        self._clock = clock
        self._wake = threading.Condition()
        self._stopping = False
        self._error: BaseException | None = None
        self._heartbeat_s = clock()
        self._step_s: deque[float] = deque(maxlen=64)
        self._collected_s = clock()
        self._small_s = 0.0  # of small steps since the last one of all
        self._in_flight: deque[tuple[Schedule, float, Pending]] = deque()  # launched (at), not collected
        self._outbox: list[StreamEvent] = []  # the thread's own until it sends them
        self._hand_over: HandOver[StreamEvent] | None = None
        self._thread = threading.Thread(target=self._run, name="backbone-engine", daemon=True)

    def start(self) -> None:
        """Start the thread; frames go to the running event loop."""
        self._hand_over = HandOver(_deliver)
        self._thread.start()

    def submit(self, request: Request) -> FrameStream:
        """Take a request in. Raises: QueueFull, EngineStopped."""
        stream = FrameStream(self)
        with self._wake:
            if self._stopping or self._error is not None:
                raise EngineStopped(
                    "the engine is stopping" if self._error is None else f"the engine failed: {self._error}"
                )
            stream.seq = self._scheduler.submit(request, self._clock(), stream)
            self._wake.notify()
        return stream

    def cancel(self, seq: SequenceState) -> None:
        """End a request; its slot is free before the next frame. Harmless after the end."""
        with self._wake:
            self._scheduler.cancel(seq, self._clock())
            self._wake.notify()

    def on_read(self, seq: SequenceState, frames: int) -> None:
        """A reader took frames from its buffer."""
        with self._wake:
            if self._scheduler.on_read(seq, frames):
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
                prompt_tokens=pool.prompt_tokens,
                prefix_hit_tokens=pool.prefix_hit_tokens,
            )

    def is_live(self, stall_limit_s: float) -> bool:
        """False when the thread is gone or stuck for `stall_limit_s`: only a restart helps."""
        return self._thread.is_alive() and self._clock() - self._heartbeat_s < stall_limit_s

    def now(self) -> float:
        """The clock that deadlines are on."""
        return self._clock()

    async def stop(self, grace_s: float) -> None:
        """Refuse new requests, give running ones `grace_s`, then end them and the thread."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        await asyncio.to_thread(self._thread.join, grace_s)
        with self._wake:
            self._scheduler.cancel_all(self._clock())
            self._wake.notify()
        await asyncio.to_thread(self._thread.join, 10.0)
        if self._thread.is_alive():
            log.error("the engine thread is stuck in a device call; leaving it")

    # ---- on the thread

    def _run(self) -> None:
        try:
            while self._iterate():
                pass
        except BaseException as error:  # the device may be in any state: end all streams and wait for a restart
            log.exception("the engine failed")
            with self._wake:
                self._error = error
                self._scheduler.cancel_all(self._clock(), FinishReason.FAILED)
                schedule = self._scheduler.schedule(self._clock())
            self._outbox += [StreamEvent(seq.stream, finish=seq.finish) for seq in schedule.ended]
            self._send_events()

    def _iterate(self) -> bool:
        """One round of the loop; False when it was the last."""
        with self._wake:
            self._heartbeat_s = self._clock()
            schedule = self._scheduler.schedule(self._heartbeat_s)
            if schedule.is_idle and not self._in_flight:
                if self._stopping and not self._scheduler.active and not self._scheduler.waiting:
                    return False
                self._wake.wait(_HEARTBEAT_S if schedule.wait_s is None else min(schedule.wait_s, _HEARTBEAT_S))
                return True
        self._outbox += [StreamEvent(seq.stream, finish=seq.finish) for seq in schedule.ended]
        for seq in schedule.ended:
            self._release(seq)
        for seq in schedule.admitted:
            assert seq.slot is not None and seq.table is not None
            self._runner.begin(seq.slot, seq.request.prompt, seq.request.sampling, seq.table)
        self._prefill(schedule)
        if schedule.step:
            launched_s = self._clock()
            pending = self._runner.launch([seq.slot for seq in schedule.step])  # type: ignore[misc]
            self._in_flight.append((schedule, launched_s, pending))
        while len(self._in_flight) > (self._runner.frames_ahead if schedule.step else 0):
            self._collect()
        self._send_events()
        return True

    def _prefill(self, schedule: Schedule) -> None:
        """Prefill prompts; those that are complete join this round's step."""
        if not schedule.prefill:
            return
        ready = set(self._runner.prefill([seq.slot for seq in schedule.prefill]))  # type: ignore[misc]
        for seq in schedule.prefill:
            if seq.slot in ready:
                with self._wake:
                    self._scheduler.on_prefilled(seq, self._clock())
                    if self._scheduler.try_schedule(seq):
                        schedule.step.append(seq)
                self._outbox.append(StreamEvent(seq.stream, is_prefilled=True))
            else:
                computed = self._runner.prefilled_tokens(seq.slot)  # type: ignore[arg-type]
                with self._wake:
                    self._scheduler.on_prefill_progress(seq, computed)
        self._send_events()  # before the step: GenerateStarted waits for this alone

    def _collect(self) -> None:
        """Read the frames of the oldest step in flight."""
        schedule, launched_s, pending = self._in_flight.popleft()
        rows = rows_of(pending())
        now = self._clock()
        step_s = now - max(launched_s, self._collected_s) + self._small_s
        self._small_s = step_s if schedule.is_small else 0.0
        if not schedule.is_small:
            self.on_step(step_s, schedule.step)
        with self._wake:
            if not schedule.is_small:
                self._step_s.append(step_s)
            self._collected_s = now
            on_frame, outbox = self._scheduler.on_frame, self._outbox
            for seq, row in zip(schedule.step, rows, strict=True):
                if seq.finish is not None:  # it ended while the step was in flight
                    continue
                is_complete = on_frame(seq, row, now) and seq.stream.add(row)
                finish: FinishReason | None = seq.finish
                if finish is not None:
                    self._release(seq)
                if is_complete or finish is not None:
                    outbox.append(StreamEvent(seq.stream, finish=finish))

    def _release(self, seq: SequenceState) -> None:
        if seq.slot is not None:
            self._runner.release(seq.slot)

    def _send_events(self) -> None:
        """All streams' events go to the event loop together."""
        if not self._outbox:
            return
        assert self._hand_over is not None
        events, self._outbox = self._outbox, []
        self._hand_over.post(events)


def _deliver(event: StreamEvent) -> None:
    event.stream.on_event(event)
