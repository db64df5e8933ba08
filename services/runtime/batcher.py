"""A dynamic batcher: work of several callers in one pass, earliest deadline first. Knows no torch."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Generic, TypeVar

from services.runtime.pool import Pool

log = logging.getLogger(__name__)

_deadline = attrgetter("deadline_s")

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class BatchResult(Generic[Result]):
    """One item's result. seconds: duration of the pass. share_s: the item's share of it, by cost.
    batch_size: items in the pass."""

    result: Result
    seconds: float
    share_s: float
    batch_size: int


@dataclass(eq=False)
class _Pending(Generic[Item, Result]):
    item: Item
    cost: int
    deadline_s: float
    done: asyncio.Future[BatchResult[Result]]


class Batcher(Generic[Item, Result]):
    """Never delays an item to fill a batch: a free thread takes the most urgent item and others that fit beside it.

    Lives on one event loop, which runs once a pass, not once an item: with a thousand streams that counts.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Item]], Sequence[Result | Exception]],
        pool: Pool,
        max_batch: int,
        batch_policy: Callable[[int, Sequence[int]], Iterable[int]] | None = None,
    ):
        """
        work: items → a result or an exception for each, in one of the threads of `pool`.
        max_batch: items of one pass.
        batch_policy: (cost of the most urgent item, costs of the other pending items, most urgent first) → indices of
            the others that may join the pass, in order of preference. None: all of them, most urgent first.
        """
        self._work, self._pool, self._max_batch, self._batch_policy = work, pool, max_batch, batch_policy
        self._pending: dict[_Pending[Item, Result], None] = {}  # oldest first
        self._workers: set[asyncio.Task[None]] = set()  # one for each busy thread

    async def run(self, item: Item, cost: int, deadline_s: float = -math.inf) -> BatchResult[Result]:
        """The item's result, when its pass is over.

        cost: relative amount of work. deadline_s: the earliest goes first; of equal ones, the oldest.

        Raises: what `work` returned or raised for the item; RuntimeError when its pass was cancelled.
        """
        pending = _Pending(item, cost, deadline_s, asyncio.get_running_loop().create_future())
        self._pending[pending] = None
        self._start_worker()
        try:
            return await pending.done
        finally:
            self._pending.pop(pending, None)  # a cancelled caller's item leaves the queue

    def _start_worker(self) -> None:
        """Start a worker if an item is pending and a thread is free."""
        if len(self._workers) < self._pool.threads and any(not pending.done.done() for pending in self._pending):
            worker = asyncio.create_task(self._worker())
            self._workers.add(worker)
            worker.add_done_callback(self._worker_ended)

    def _worker_ended(self, worker: asyncio.Task[None]) -> None:
        """Replace the worker, even when it was cancelled before its first step: pending items need one."""
        self._workers.discard(worker)
        if not worker.cancelled() and (error := worker.exception()) is not None:
            log.error("a batch worker failed (%r)", error)
        self._start_worker()

    async def _worker(self) -> None:
        """Run passes until no item is pending. Every item that it takes gets a result or an error."""
        while (first := self._take_first()) is not None:
            batch = [first]
            try:
                batch += self._fill_batch(first)
                await self._run_pass(batch)
            except Exception as error:
                self._fail(batch, error)
            except BaseException as error:  # a cancelled worker, a closed pool
                self._fail(batch, RuntimeError(f"the pass was cancelled ({error!r})"))
                raise

    async def _run_pass(self, batch: list[_Pending[Item, Result]]) -> None:
        items = [each.item for each in batch]
        results, seconds = await self._pool.run(lambda: self._work(items))
        total = sum(each.cost for each in batch) or 1
        for each, result in zip(batch, results, strict=True):
            if each.done.done():
                continue
            if isinstance(result, Exception):
                each.done.set_exception(result)
            else:
                each.done.set_result(BatchResult(result, seconds, seconds * each.cost / total, len(batch)))

    def _take_first(self) -> _Pending[Item, Result] | None:
        """Remove and return the most urgent pending item; None when there is none."""
        pending = (pending for pending in self._pending if not pending.done.done())
        first = min(pending, key=_deadline, default=None)  # of equal ones, the oldest
        if first is not None:
            del self._pending[first]
        return first

    def _fill_batch(self, first: _Pending[Item, Result]) -> list[_Pending[Item, Result]]:
        """Remove and return the other items of its pass."""
        if self._max_batch == 1:
            return []
        others = sorted((pending for pending in self._pending if not pending.done.done()), key=_deadline)
        if self._batch_policy is not None:
            others = [others[index] for index in self._batch_policy(first.cost, [each.cost for each in others])]
        others = others[: self._max_batch - 1]
        for each in others:
            del self._pending[each]
        return others

    @staticmethod
    def _fail(batch: list[_Pending[Item, Result]], error: Exception) -> None:
        for each in batch:
            if not each.done.done():
                each.done.set_exception(error)
