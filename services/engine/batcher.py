"""A dynamic batcher: work of several callers in one pass, earliest deadline first. Knows no torch."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Generic, TypeVar

from services.engine.loop import Call, DeviceLoop, LoopClosed

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

    Call `run` on the event loop that it was made on. The results of a pass go there together (hand_over.py).
    """

    def __init__(
        self,
        work: Callable[[Sequence[Item]], Sequence[Result | Exception]],
        loop: DeviceLoop[list[_Pending[Item, Result]], Sequence[Result | Exception]],
        max_batch: int,
        batch_policy: Callable[[int, Sequence[int]], Iterable[int]] | None = None,
    ):
        """
        work: items → a result or an exception for each, in one of the threads of `loop`.
        loop: starts now, and is this batcher's alone.
        max_batch: items of one pass.
        batch_policy: (cost of the most urgent item, costs of the other pending items, most urgent first) → indices of
            the others that may join the pass, in order of preference. None: all of them, most urgent first.
        """
        self._work, self._loop, self._max_batch, self._batch_policy = work, loop, max_batch, batch_policy
        self._pending: dict[_Pending[Item, Result], None] = {}  # oldest first
        loop.serve(self)

    async def run(self, item: Item, cost: int, deadline_s: float = -math.inf) -> BatchResult[Result]:
        """The item's result, when its pass is over.

        cost: relative amount of work. deadline_s: the earliest goes first; of equal ones, the oldest.

        Raises: what `work` returned or raised for the item; RuntimeError when the loop is closed.
        """
        pending = _Pending(item, cost, deadline_s, asyncio.get_running_loop().create_future())
        with self._loop.changed:
            if self._loop.failure is not None:
                raise RuntimeError(str(self._loop.failure))
            self._pending[pending] = None
            self._loop.changed.notify()
        try:
            return await pending.done
        finally:
            with self._loop.changed:
                self._pending.pop(pending, None)  # a cancelled caller's item leaves the queue

    # For the loop: see Source.

    def take(self) -> list[_Pending[Item, Result]] | None:
        while self._pending:
            if self._max_batch == 1:
                first, others = min(self._pending, key=_deadline), []  # of equal ones, the oldest
            else:
                first, *others = sorted(self._pending, key=_deadline)
            del self._pending[first]
            try:
                return [first, *self._fill(first, others)]
            except Exception as error:  # the policy's
                self._loop.post([partial(_settle, first, error)])
        return None

    def begin(self, batch: list[_Pending[Item, Result]]) -> Callable[[], Sequence[Result | Exception]]:
        return partial(self._work, [each.item for each in batch])

    def complete(
        self, batch: list[_Pending[Item, Result]], output: Sequence[Result | Exception], seconds: float
    ) -> Sequence[Call]:
        total = sum(each.cost for each in batch) or 1
        results: list[BatchResult[Result] | Exception] = [
            result
            if isinstance(result, Exception)
            else BatchResult(result, seconds, seconds * each.cost / total, len(batch))
            for each, result in zip(batch, output, strict=False)
        ]
        missing = RuntimeError(f"a pass of {len(batch)} items gave {len(output)} results")
        results += [missing] * (len(batch) - len(results))
        return [partial(_settle, each, result) for each, result in zip(batch, results, strict=True)]

    def fail(self, batch: list[_Pending[Item, Result]], error: BaseException) -> Sequence[Call]:
        failure = error if isinstance(error, Exception) else RuntimeError(f"the pass was cancelled ({error!r})")
        return [partial(_settle, each, failure) for each in batch]

    def end(self, error: Exception) -> None:
        failure = RuntimeError(str(error)) if isinstance(error, LoopClosed) else error
        with self._loop.changed:
            batch = list(self._pending)
            self._pending.clear()
        for each in batch:
            _settle(each, failure)

    def _fill(
        self, first: _Pending[Item, Result], others: list[_Pending[Item, Result]]
    ) -> list[_Pending[Item, Result]]:
        """Remove and return the other items of its pass. others: all that wait, most urgent first."""
        if self._batch_policy is not None:
            others = [others[index] for index in self._batch_policy(first.cost, [each.cost for each in others])]
        others = others[: self._max_batch - 1]
        for each in others:
            del self._pending[each]
        return others


def _settle(pending: _Pending[Item, Result], result: BatchResult[Result] | Exception) -> None:
    if pending.done.done():
        return
    if isinstance(result, Exception):
        pending.done.set_exception(result)
    else:
        pending.done.set_result(result)
