"""Streams that wait are marked together: one pass of the nets for all that are there. Knows no torch."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from services.watermark.pool import Pool

Piece = TypeVar("Piece")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Done(Generic[Result]):
    """seconds: what the pass took. share_s: this piece's share of it, by load."""

    result: Result
    seconds: float
    share_s: float


class Batches(Generic[Piece, Result]):
    """Nothing waits for company: a free thread takes the pieces that are there, oldest first, `most` at most.

    work: pieces → a result or an exception for each. pool: whose threads do it.
    Lives on one event loop, which is asked once a pass, not once a piece: with a thousand streams that counts.
    """

    def __init__(self, work: Callable[[Sequence[Piece]], Sequence[Result | Exception]], pool: Pool, most: int):
        self._work, self._pool, self._most = work, pool, most
        self._waiting: deque[tuple[Piece, int, asyncio.Future[Done[Result]]]] = deque()
        self._busy = 0  # threads
        self._turns: set[asyncio.Task[None]] = set()  # whom nobody else holds

    async def run(self, piece: Piece, load: int) -> Done[Result]:
        """The piece's result, when its pass is over. load: how much it is, compared with others.

        Raises: what `work` gave or raised for it.
        """
        future: asyncio.Future[Done[Result]] = asyncio.get_running_loop().create_future()
        self._waiting.append((piece, load, future))
        if self._busy < self._pool.threads:
            self._busy += 1
            turn = asyncio.create_task(self._turn())
            self._turns.add(turn)
            turn.add_done_callback(self._turns.discard)
        return await future  # a caller who leaves cancels it: its piece is passed over

    async def _turn(self) -> None:
        """Passes until nothing waits."""
        taken = []
        try:
            while taken := self._take():
                await self._pass(taken)
        finally:
            self._busy -= 1
            for _, _, future in taken:
                future.cancel()  # the threads are gone; nothing where a result is there

    async def _pass(self, taken: list[tuple[Piece, int, asyncio.Future[Done[Result]]]]) -> None:
        pieces = [piece for piece, _, _ in taken]
        try:
            results, seconds = await self._pool.run(lambda: self._work(pieces))
        except Exception as error:
            for _, _, future in taken:
                if not future.done():
                    future.set_exception(error)
            return
        total = sum(load for _, load, _ in taken) or 1
        for (_, load, future), result in zip(taken, results, strict=True):
            if future.done():
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(Done(result, seconds, seconds * load / total))

    def _take(self) -> list[tuple[Piece, int, asyncio.Future[Done[Result]]]]:
        taken: list[tuple[Piece, int, asyncio.Future[Done[Result]]]] = []
        while self._waiting and len(taken) < self._most:
            piece = self._waiting.popleft()
            if not piece[2].done():
                taken.append(piece)
        return taken
