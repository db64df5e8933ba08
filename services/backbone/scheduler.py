"""Who runs next: requests, slots, blocks, a bounded queue, deadlines. Pure Python: no torch, threads or clock.

The engine calls in, under its own lock, and says what time it is (`now`, seconds on any clock that
only rises). A request goes

    waiting ─→ prefilling ─→ stepping ─→ ended
                 └ has a slot ┘   └ paused while its reader leaves `buffer_frames` unread

and may end at any point: cancelled, past its deadline, its reader gone silent. It is admitted when a
slot is free and the block pool can promise it all rows it may ever need (blocks.py); until then it
waits, and nobody who came later overtakes it. Requests that come together and begin alike are read once:
the first one reads, the others have their slots and start when its blocks are there to share.

A runner may be some frames ahead of what it has told: those are `in_flight`. A frame that comes after
the one that ended speech is dropped by the engine.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from services.backbone.blocks import BlockPool, Table


class Finish(Enum):
    """Why a request ended. The first two are what a caller asked for."""

    END_OF_SPEECH = auto()
    MAX_LENGTH = auto()
    CANCELLED = auto()
    DEADLINE = auto()
    STALLED = auto()  # its reader took no frame for too long
    FAILED = auto()  # the engine broke

    @property
    def is_normal(self) -> bool:
        return self in (Finish.END_OF_SPEECH, Finish.MAX_LENGTH)


class Busy(Exception):
    """It cannot run now and no place in the queue is free; `retry_after_s` is when one may be."""

    def __init__(self, text: str, retry_after_s: float):
        super().__init__(text)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class Sampling:
    """How a request's codes are drawn. top_k 1 is greedy. seed: [0, 2^64)."""

    temperature: float = 0.9
    top_k: int = 50
    seed: int = 0


@dataclass(frozen=True)
class Request:
    """What is to be generated.

    prompt: for the runner; the scheduler does not look inside.
    max_frames: limit on the utterance, the `generated_frames` of an earlier stream included.
    deadline_s: on the scheduler's clock; None is never.
    prompt_rows: rows of the prompt, the frames already generated included.
    block_keys: what the prompt's full blocks hold, see blocks.py; empty shares nothing.
    """

    prompt: Any
    sampling: Sampling
    max_frames: int
    generated_frames: int = 0
    deadline_s: float | None = None
    prompt_rows: int = 1
    block_keys: tuple[bytes, ...] = ()

    @property
    def rows(self) -> int:
        """Rows it may come to; the last frame takes none, as nothing reads it."""
        return self.prompt_rows + self.max_frames - self.generated_frames - 1


@dataclass(eq=False)
class Entry:
    """A request on its way. Times are on the scheduler's clock; None until it gets there."""

    request: Request
    submitted_s: float
    stream: Any = None  # whoever reads the frames; the engine's business
    slot: int | None = None
    table: Table | None = None
    next_frame: int = 0
    in_flight: int = 0
    unread_frames: int = 0
    admitted_s: float | None = None
    prefilled_s: float | None = None
    ended_s: float | None = None
    finish: Finish | None = None
    paused_s: float | None = None
    reading: Sequence[bytes] = ()  # keys of the blocks that its prefill fills and others wait for


@dataclass
class Plan:
    """What the engine does next: free, begin, prefill (in this order, a bounded amount), step."""

    ended: list[Entry] = field(default_factory=list)  # a slot, if they had one, is theirs to release
    admitted: list[Entry] = field(default_factory=list)  # and told to the runner now
    prefill: list[Entry] = field(default_factory=list)
    step: list[Entry] = field(default_factory=list)
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
    ):
        """
        queue_capacity: requests that may wait for a slot or for blocks.
        pool: the cache's blocks; must hold the longest request.
        buffer_frames: frames a reader may leave unread before its slot pauses.
        stall_limit_s: how long a slot may stay paused before its request is ended.
        """
        self.slots = slots
        self.queue_capacity = queue_capacity
        self.pool = pool
        self._buffer_frames = buffer_frames
        self._stall_limit_s = stall_limit_s
        self._waiting: deque[Entry] = deque()
        self._active: list[Entry] = []  # in order of admission
        self._joining: list[Entry] = []  # of these: not told to the runner yet
        self._reading: dict[bytes, Entry] = {}  # keys of blocks that are being filled, and by whom
        self._free = list(range(slots))[::-1]
        self._ended: list[Entry] = []  # since the last plan
        self._lacks_blocks = False  # a slot is free, but not the blocks of who waits first
        self._service_s = 2.0  # smoothed time a request holds its slot; a first guess until one has

    @property
    def active(self) -> int:
        return len(self._active)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def submit(self, request: Request, now: float, stream: Any = None) -> Entry:
        """Take a request in. Raises: Busy."""
        can_start = 0 if self._lacks_blocks else len(self._free)
        if self.waiting >= can_start + self.queue_capacity:
            wait_s = self._service_s * (self.waiting + 1) / max(self.active, 1)
            taken = "all blocks of the cache" if self._lacks_blocks else f"all {self.slots} slots"
            raise Busy(f"{taken} and {self.queue_capacity} places in the queue are taken", min(max(wait_s, 0.05), 60.0))
        entry = Entry(request, now, stream, next_frame=request.generated_frames)
        self._waiting.append(entry)
        return entry

    def cancel(self, entry: Entry, now: float, finish: Finish = Finish.CANCELLED) -> None:
        """End a request; its slot is free from the next plan on. Nothing happens if it has ended."""
        if entry.finish is None:
            self._end(entry, finish, now)
            self._ended.append(entry)

    def cancel_all(self, now: float, finish: Finish = Finish.CANCELLED) -> None:
        for entry in [*self._waiting, *self._active]:
            self.cancel(entry, now, finish)

    def consumed(self, entry: Entry, frames: int) -> bool:
        """The reader took frames. Returns: whether that lets a paused slot go on."""
        entry.unread_frames -= frames
        if entry.paused_s is not None and entry.unread_frames < self._buffer_frames:
            entry.paused_s = None
            return True
        return False

    def plan(self, now: float) -> Plan:
        """Expire what is late, give free slots to those who waited longest, say who works now.

        Every entry in `step` counts as launched: its frame must be told to stepped().
        """
        for entry in [*self._waiting, *self._active]:
            if entry.request.deadline_s is not None and now >= entry.request.deadline_s:
                self.cancel(entry, now, Finish.DEADLINE)
            elif entry.paused_s is not None and now >= entry.paused_s + self._stall_limit_s:
                self.cancel(entry, now, Finish.STALLED)
        plan = Plan()
        self._lacks_blocks = False
        while self._waiting and self._free:
            entry = self._waiting[0]
            request = entry.request
            if entry.next_frame < request.max_frames:
                entry.table = self.pool.open(request.prompt_rows, request.rows, request.block_keys)
                if entry.table is None:
                    self._lacks_blocks = True
                    break
            self._waiting.popleft()
            entry.admitted_s = now
            if entry.next_frame >= entry.request.max_frames:  # an earlier stream made them all
                entry.prefilled_s = now
                self._end(entry, Finish.MAX_LENGTH, now)
                self._ended.append(entry)
                continue
            entry.slot = self._free.pop()
            self._active.append(entry)
            self._joining.append(entry)
        joining, self._joining = self._joining, []
        for entry in joining:
            (plan.admitted if self._can_begin(entry) else self._joining).append(entry)
        plan.ended, self._ended = self._ended, []
        plan.prefill = [e for e in self._active if e.prefilled_s is None and e not in self._joining]
        plan.step = [entry for entry in self._active if self.joins(entry)]
        if plan.is_idle:
            deadlines = [entry.request.deadline_s for entry in [*self._waiting, *self._active]]
            expiries = [deadline for deadline in deadlines if deadline is not None]
            expiries += [e.paused_s + self._stall_limit_s for e in self._active if e.paused_s is not None]
            plan.wait_s = max(0.0, min(expiries) - now) if expiries else None
        return plan

    def joins(self, entry: Entry) -> bool:
        """Whether an entry has a part in the next step; then it counts as launched, with blocks for its row."""
        if not self._can_step(entry):
            return False
        assert entry.table is not None
        made = entry.next_frame + entry.in_flight - entry.request.generated_frames
        self.pool.grow(entry.table, entry.request.prompt_rows + made)
        entry.in_flight += 1
        return True

    def prefilled(self, entry: Entry, now: float) -> None:
        """The prompt is in the model: the request steps from now on, in this round if joins() is asked."""
        if entry.finish is None:
            assert entry.table is not None
            self.pool.publish(entry.table, entry.request.block_keys, entry.request.prompt_rows)
            self._stop_reading(entry)
            entry.prefilled_s = now

    def stepped(self, entry: Entry, codes: Sequence[int], now: float) -> bool:
        """A planned step gave a frame. An all-zero one ends speech and is not delivered.

        entry: one that has not ended. Returns: whether the frame is to be delivered; `entry.finish`
        says whether it was the last.
        """
        entry.in_flight -= 1
        if not any(codes):
            self._end(entry, Finish.END_OF_SPEECH, now)
            return False
        entry.next_frame += 1
        entry.unread_frames += 1
        if entry.next_frame >= entry.request.max_frames:
            self._end(entry, Finish.MAX_LENGTH, now)
        elif entry.unread_frames >= self._buffer_frames:
            entry.paused_s = now
        return True

    def _can_begin(self, entry: Entry) -> bool:
        """Whether nobody else is reading what its prompt goes on with; then it has blocks for all of it."""
        request, table = entry.request, entry.table
        assert table is not None
        for is_told in (False, True):  # then once more, knowing what others have read since it was admitted
            if is_told:
                self.pool.share(table, request.block_keys, request.prompt_rows)
            missing = self.pool.missing(table, request.block_keys, request.prompt_rows)
            if missing and missing[0] in self._reading:
                return False
        entry.reading = missing
        for key in missing:
            self._reading.setdefault(key, entry)
        self.pool.grow(table, request.prompt_rows)
        return True

    def _stop_reading(self, entry: Entry) -> None:
        for key in entry.reading:
            if self._reading.get(key) is entry:
                del self._reading[key]
        entry.reading = ()

    def _can_step(self, entry: Entry) -> bool:
        return (
            entry.prefilled_s is not None
            and entry.paused_s is None
            and entry.next_frame + entry.in_flight < entry.request.max_frames
            and entry.unread_frames + entry.in_flight < self._buffer_frames
        )

    def _end(self, entry: Entry, finish: Finish, now: float) -> None:
        entry.finish, entry.ended_s, entry.paused_s = finish, now, None
        if entry.table is not None:
            self.pool.close(entry.table)
        self._stop_reading(entry)
        if entry in self._joining:
            self._joining.remove(entry)
        if entry.slot is not None:
            self._active.remove(entry)
            self._free.append(entry.slot)
            if finish.is_normal and entry.admitted_s is not None:
                self._service_s += 0.2 * (now - entry.admitted_s - self._service_s)
        elif entry in self._waiting:
            self._waiting.remove(entry)
