"""Work of several callers in one pass: the most urgent of what waits when a thread becomes free. Knows no torch."""

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

_due = attrgetter("due_s")

Piece = TypeVar("Piece")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Done(Generic[Result]):
    """seconds: what the pass took. share_s: this piece's share of it, by load. pieces: of the pass."""

    result: Result
    seconds: float
    share_s: float
    pieces: int


@dataclass(eq=False)
class _Waiting(Generic[Piece, Result]):
    piece: Piece
    load: int
    due_s: float
    done: asyncio.Future[Done[Result]]


class Batches(Generic[Piece, Result]):
    """Nothing waits for company: a free thread takes the most urgent piece that is there, and others along with it.

    Lives on one event loop, which is asked once a pass, not once a piece: with a thousand streams that counts.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Piece]], Sequence[Result | Exception]],
        pool: Pool,
        most: int,
        company: Callable[[int, Sequence[int]], Iterable[int]] | None = None,
    ):
        """
        work: pieces → a result or an exception for each, in one of the threads of `pool`.
        most: pieces of one pass.
        company: the most urgent piece's load, and those of the others that wait, most urgent first → places of the
            others that may go along with it, those to take first in front. None: all of them, most urgent first.
        """
        self._work, self._pool, self._most, self._company = work, pool, most, company
        self._waiting: dict[_Waiting[Piece, Result], None] = {}  # oldest first
        self._turns: set[asyncio.Task[None]] = set()  # one for each thread at work

    async def run(self, piece: Piece, load: int, due_s: float = -math.inf) -> Done[Result]:
        """The piece's result, when its pass is over.

        load: how much it is, compared with others. due_s: the least is the most urgent, and of several the oldest.

        Raises: what `work` gave or raised for it; RuntimeError when its pass was broken off.
        """
        waiting = _Waiting(piece, load, due_s, asyncio.get_running_loop().create_future())
        self._waiting[waiting] = None
        self._begin()
        try:
            return await waiting.done
        finally:
            self._waiting.pop(waiting, None)  # a caller who leaves takes its piece along

    def _begin(self) -> None:
        """A turn, if something waits and a thread is free."""
        if len(self._turns) < self._pool.threads and any(not waiting.done.done() for waiting in self._waiting):
            turn = asyncio.create_task(self._turn())
            self._turns.add(turn)
            turn.add_done_callback(self._ended)

    def _ended(self, turn: asyncio.Task[None]) -> None:
        """However the turn ended, and be it before its first step: what waits has another one."""
        self._turns.discard(turn)
        if not turn.cancelled() and (error := turn.exception()) is not None:
            log.error("a turn broke off (%r)", error)
        self._begin()

    async def _turn(self) -> None:
        """Passes until nothing waits. Each takes a piece at least and leaves none of its own unanswered."""
        while (first := self._first()) is not None:
            taken = [first]
            try:
                taken += self._along_with(first)
                await self._pass(taken)
            except Exception as error:
                self._fail(taken, error)
            except BaseException as error:  # a cancelled turn, a pool that was closed
                self._fail(taken, RuntimeError(f"the pass was broken off ({error!r})"))
                raise

    async def _pass(self, taken: list[_Waiting[Piece, Result]]) -> None:
        pieces = [each.piece for each in taken]
        results, seconds = await self._pool.run(lambda: self._work(pieces))
        total = sum(each.load for each in taken) or 1
        for each, result in zip(taken, results, strict=True):
            if each.done.done():
                continue
            if isinstance(result, Exception):
                each.done.set_exception(result)
            else:
                each.done.set_result(Done(result, seconds, seconds * each.load / total, len(taken)))

    def _first(self) -> _Waiting[Piece, Result] | None:
        """The most urgent, who waits no longer."""
        waiting = (waiting for waiting in self._waiting if not waiting.done.done())
        first = min(waiting, key=_due, default=None)  # the oldest of several
        if first is not None:
            del self._waiting[first]
        return first

    def _along_with(self, first: _Waiting[Piece, Result]) -> list[_Waiting[Piece, Result]]:
        """The others of its pass, who wait no longer."""
        if self._most == 1:
            return []
        others = sorted((waiting for waiting in self._waiting if not waiting.done.done()), key=_due)
        if self._company is not None:
            others = [others[place] for place in self._company(first.load, [each.load for each in others])]
        others = others[: self._most - 1]
        for each in others:
            del self._waiting[each]
        return others

    @staticmethod
    def _fail(taken: list[_Waiting[Piece, Result]], error: Exception) -> None:
        for each in taken:
            if not each.done.done():
                each.done.set_exception(error)
