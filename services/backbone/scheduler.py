"""What to run next: requests, slots, blocks, a bounded queue, deadlines. Pure Python: no torch, threads or clock.

The engine calls in, under its own lock, and passes the time (`now`, seconds on any monotonic clock).
A request goes

    waiting ─→ prefilling ─→ stepping ─→ ended
                 └ has a slot ┘   └ paused while its reader leaves `buffer_frames` unread

and may end at any point: cancelled, past its deadline, its reader stalled. It is admitted when a slot is
free and the block pool can reserve all positions it may need (blocks.py); until then it waits, first come,
first served. Requests that arrive together and begin alike are prefilled once: the first one computes the
shared blocks, the others hold their slots and start when the blocks are in the cache.

A runner may have launched frames that were not read back yet: those are `in_flight`. A frame that comes after
the one that ended speech is dropped by the engine.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from services.backbone.blocks import BLOCK_TOKENS, BlockPool
from services.backbone.newcomers import NewcomersFirst
from services.backbone.request import FinishReason, Request, SequenceState


class QueueFull(Exception):
    """No slot and no permit of the queue is free; `retry_after_s` is when one may be."""

    def __init__(self, text: str, retry_after_s: float):
        super().__init__(text)
        self.retry_after_s = retry_after_s


@dataclass
class Schedule:
    """What the engine does next, in this order: free, begin, prefill (a bounded amount), step."""

    ended: list[SequenceState] = field(default_factory=list)  # the runner may release their slots, if they had one
    admitted: list[SequenceState] = field(default_factory=list)  # new to the runner
    prefill: list[SequenceState] = field(default_factory=list)
    step: list[SequenceState] = field(default_factory=list)
    is_small: bool = False  # some who are ready sit this step out (newcomers.py)
    wait_s: float | None = None  # with nothing to do: when something may expire

    @property
    def is_idle(self) -> bool:
        return not (self.ended or self.admitted or self.prefill or self.step)


class Scheduler:
    """Slots and blocks, and the queue in front of them."""

    def __init__(
        self,
        *,
        slots: int,
        queue_capacity: int,
        pool: BlockPool,
        buffer_frames: int = 128,
        stall_limit_s: float = 30.0,
        newcomers: NewcomersFirst | None = None,
    ):
        """
        queue_capacity: requests that may wait for a slot or for blocks.
        pool: the cache's blocks; must hold the longest request.
        buffer_frames: unread frames at which a slot pauses.
        stall_limit_s: how long a slot may stay paused before its request is ended.
        newcomers: who is left out of a step for newcomers; None: no stream.
        """
        self.slots = slots
        self.queue_capacity = queue_capacity
        self.pool = pool
        self._buffer_frames = buffer_frames
        self._stall_limit_s = stall_limit_s
        self._newcomers = newcomers
        self._waiting: deque[SequenceState] = deque()
        self._active: list[SequenceState] = []  # in order of admission
        self._unstarted: list[SequenceState] = []  # of these: the runner does not have them yet
        self._prefilling: dict[bytes, SequenceState] = {}  # keys of blocks that are being computed, and by which
        self._free = list(range(slots))[::-1]
        self._ended: list[SequenceState] = []  # since the last schedule
        self._expiry_s = math.inf  # no deadline or pause ends before
        self._is_short_of_blocks = False  # a slot is free, but too few blocks for the first in the queue
        self._service_s = 2.0  # smoothed time a request holds its slot; a first guess until one has

    @property
    def active(self) -> int:
        return len(self._active)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def submit(self, request: Request, now: float, stream: Any = None) -> SequenceState:
        """Take a request in. Raises: QueueFull."""
        can_start = 0 if self._is_short_of_blocks else len(self._free)
        if self.waiting >= can_start + self.queue_capacity:
            wait_s = self._service_s * (self.waiting + 1) / max(self.active, 1)
            taken = "all blocks of the cache" if self._is_short_of_blocks else f"all {self.slots} slots"
            raise QueueFull(
                f"{taken} are in use and {self.queue_capacity} requests wait in the queue", min(max(wait_s, 0.05), 60.0)
            )
        seq = SequenceState(request, now, stream, next_frame=request.generated_frames)
        seq.prefix_keys = request.prefix_keys.copy()
        self._waiting.append(seq)
        if request.deadline_s is not None:
            self._expiry_s = min(self._expiry_s, request.deadline_s)
        return seq

    def cancel(self, seq: SequenceState, now: float, finish: FinishReason = FinishReason.CANCELLED) -> None:
        """End a request; its slot is free from the next schedule on. Harmless after the end."""
        if seq.finish is None:
            self._end(seq, finish, now)
            self._ended.append(seq)

    def cancel_all(self, now: float, finish: FinishReason = FinishReason.CANCELLED) -> None:
        for seq in [*self._waiting, *self._active]:
            self.cancel(seq, now, finish)

    def on_read(self, seq: SequenceState, frames: int) -> bool:
        """The reader took frames. Returns: whether a paused slot goes on."""
        seq.unread_frames -= frames
        if seq.paused_s is not None and seq.unread_frames < self._buffer_frames:
            seq.paused_s = None
            return True
        return False

    def schedule(self, now: float) -> Schedule:
        """Expire what is late, give free slots to the longest waiting, choose what runs.

        Every sequence in `step` counts as launched: its frame must be passed to on_frame().
        """
        if now >= self._expiry_s:
            self._expire(now)
        self._admit(now)
        schedule = Schedule()
        unstarted, self._unstarted = self._unstarted, []
        for seq in unstarted:
            (schedule.admitted if self._try_start(seq) else self._unstarted).append(seq)
        schedule.ended, self._ended = self._ended, []
        unstarted = self._unstarted
        ready: list[SequenceState] = []
        for seq in self._active:
            if seq.prefilled_s is None:
                if seq not in unstarted:
                    schedule.prefill.append(seq)
            elif self._is_ready(seq):
                ready.append(seq)
        if self._newcomers is not None:
            count = len(ready)
            ready = self._newcomers.choose(ready, bool(schedule.prefill), now)
            schedule.is_small = len(ready) < count
        for seq in ready:
            self._schedule(seq)
        schedule.step = ready
        if schedule.is_idle:
            self._expire(now)  # nothing ends, but the time of what ends next is known exactly
            schedule.wait_s = None if self._expiry_s == math.inf else max(0.0, self._expiry_s - now)
        return schedule

    def _expire(self, now: float) -> None:
        """End what is late. Side effect: notes when to look again."""
        self._expiry_s = math.inf
        for seq in [*self._waiting, *self._active]:
            deadline_s, stalled_s = seq.request.deadline_s, math.inf
            if seq.paused_s is not None:
                stalled_s = seq.paused_s + self._stall_limit_s
            if deadline_s is not None and now >= deadline_s:
                self.cancel(seq, now, FinishReason.DEADLINE)
            elif now >= stalled_s:
                self.cancel(seq, now, FinishReason.STALLED)
            else:
                self._expiry_s = min(self._expiry_s, stalled_s, math.inf if deadline_s is None else deadline_s)

    def try_schedule(self, seq: SequenceState) -> bool:
        """Put a sequence into the next step if it can step. Side effects: a frame in flight, a block if it needs one."""
        if not self._is_ready(seq):
            return False
        self._schedule(seq)
        return True

    def _schedule(self, seq: SequenceState) -> None:
        """As try_schedule, of one that is ready."""
        request, table = seq.request, seq.table
        assert table is not None
        tokens = request.prefill_tokens + seq.next_frame + seq.in_flight - request.generated_frames
        if tokens > BLOCK_TOKENS * len(table.blocks):  # once in BLOCK_TOKENS frames
            self.pool.grow(table, tokens)
        seq.in_flight += 1

    def on_prefill_progress(self, seq: SequenceState, computed_tokens: int) -> None:
        """A part of the prompt is in the cache: others may share its blocks, also if this request ends now."""
        if seq.finish is None:
            assert seq.table is not None
            self.pool.publish(seq.table, seq.prefix_keys.keys, computed_tokens)
            self._stop_prefilling(seq, seq.table.published)

    def on_prefilled(self, seq: SequenceState, now: float) -> None:
        """The prompt is in the cache: the request can step from now on, in this round with try_schedule()."""
        if seq.finish is None:
            assert seq.table is not None
            self.pool.publish(seq.table, seq.prefix_keys.keys, seq.request.prefill_tokens - 1)
            self._stop_prefilling(seq)
            seq.prefilled_s = now

    def on_frame(self, seq: SequenceState, row: bytes | None, now: float) -> bool:
        """A scheduled step gave a frame, a row of frame_rows.py. None ends speech and is not delivered.

        seq: one that has not ended. Returns: whether the frame is to be delivered; `seq.finish`
        says whether it was the last.
        """
        assert seq.table is not None
        seq.in_flight -= 1
        request, frames = seq.request, seq.next_frame - seq.request.generated_frames
        # A step computes the token before its frame: the prompt's last one, then the frames.
        computed = request.prefill_tokens + frames
        if computed % BLOCK_TOKENS == 0:
            self.pool.publish(seq.table, seq.prefix_keys.keys, computed)
        if row is None:
            self._end(seq, FinishReason.END_OF_SPEECH, now)
            return False
        if self.pool.prefix_cache:
            seq.prefix_keys.append(row)
        seq.next_frame += 1
        seq.unread_frames += 1
        if seq.audible_s is None and frames >= request.held_back_frames:
            seq.audible_s = now
        if seq.next_frame >= request.max_frames:
            self._end(seq, FinishReason.MAX_LENGTH, now)
        elif seq.unread_frames >= self._buffer_frames:
            seq.paused_s = now
            self._expiry_s = min(self._expiry_s, now + self._stall_limit_s)
        return True

    def _admit(self, now: float) -> None:
        """Give free slots to the longest waiting, as far as there are blocks."""
        self._is_short_of_blocks = False
        while self._waiting and self._free:
            seq = self._waiting[0]
            request = seq.request
            if seq.next_frame < request.max_frames:
                seq.table = self.pool.open(request.prefill_tokens, request.max_tokens, seq.prefix_keys.keys)
                if seq.table is None:
                    self._is_short_of_blocks = True
                    return
            self._waiting.popleft()
            seq.admitted_s = now
            if seq.next_frame >= request.max_frames:  # an earlier stream made them all
                seq.prefilled_s = now
                self._end(seq, FinishReason.MAX_LENGTH, now)
                self._ended.append(seq)
                continue
            seq.slot = self._free.pop()
            self._active.append(seq)
            self._unstarted.append(seq)

    def _try_start(self, seq: SequenceState) -> bool:
        """Start unless another request is prefilling the same prefix blocks. Side effect: allocates the prompt's blocks."""
        tokens, keys, table = seq.request.prefill_tokens, seq.prefix_keys.keys, seq.table
        assert table is not None
        for look_again in (False, True):  # the second time with what others have cached since it was admitted
            if look_again:
                self.pool.share(table, keys, tokens)
            missing = self.pool.missing(table, keys, tokens)
            if missing and missing[0] in self._prefilling:
                return False
        seq.prefilling_from, seq.prefilling_keys = len(table.blocks), missing
        for key in missing:
            self._prefilling.setdefault(key, seq)
        self.pool.grow(table, tokens)
        return True

    def _stop_prefilling(self, seq: SequenceState, blocks: int | None = None) -> None:
        """Others need not wait for the first `blocks` blocks of the sequence any more; None: for none of them."""
        count = len(seq.prefilling_keys) if blocks is None else max(0, blocks - seq.prefilling_from)
        for key in seq.prefilling_keys[:count]:
            if self._prefilling.get(key) is seq:
                del self._prefilling[key]
        seq.prefilling_from, seq.prefilling_keys = seq.prefilling_from + count, seq.prefilling_keys[count:]

    def _is_ready(self, seq: SequenceState) -> bool:
        in_flight = seq.in_flight
        return (
            seq.prefilled_s is not None
            and seq.paused_s is None
            and seq.next_frame + in_flight < seq.request.max_frames
            and seq.unread_frames + in_flight < self._buffer_frames
        )

    def _end(self, seq: SequenceState, finish: FinishReason, now: float) -> None:
        seq.finish, seq.ended_s, seq.paused_s = finish, now, None
        if seq.table is not None:
            self.pool.close(seq.table)
        self._stop_prefilling(seq)
        if seq in self._unstarted:
            self._unstarted.remove(seq)
        if seq.slot is not None:
            self._active.remove(seq)
            self._free.append(seq.slot)
            if finish.is_normal and seq.admitted_s is not None:
                self._service_s += 0.2 * (now - seq.admitted_s - self._service_s)
        elif seq in self._waiting:
            self._waiting.remove(seq)
