"""Streams that wait are marked together: one pass of the nets for all that are there. Knows no torch."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Lock
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
    """

    def __init__(self, work: Callable[[Sequence[Piece]], Sequence[Result | Exception]], pool: Pool, most: int):
        self._work, self._pool, self._most = work, pool, most
        self._waiting: deque[tuple[Piece, int, Future[Done[Result]]]] = deque()
        self._lock = Lock()

    async def run(self, piece: Piece, load: int) -> Done[Result]:
        """The piece's result, when its pass is over. load: how much it is, compared with others.

        Raises: what `work` gave or raised for it.
        """
        future: Future[Done[Result]] = Future()
        self._waiting.append((piece, load, future))
        try:
            # As many turns as pieces, both in order, and each turn takes one piece at least: when this
            # turn is over, an earlier one or this one has taken the piece. Shielded, since a turn that
            # left with its caller would be missed by whoever is behind it, should the piece be taken yet.
            await asyncio.shield(self._pool.run(self._turn))
            return await asyncio.wrap_future(future)
        finally:
            future.cancel()  # the caller is gone: a turn passes it over

    def _turn(self) -> None:
        taken = self._take()
        if not taken:
            return
        began = time.monotonic()
        try:
            results = self._work([piece for piece, _, _ in taken])
        except Exception as error:
            for _, _, future in taken:
                future.set_exception(error)
            return
        seconds = time.monotonic() - began
        total = sum(load for _, load, _ in taken) or 1
        for (_, load, future), result in zip(taken, results, strict=True):
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(Done(result, seconds, seconds * load / total))

    def _take(self) -> list[tuple[Piece, int, Future[Done[Result]]]]:
        taken: list[tuple[Piece, int, Future[Done[Result]]]] = []
        with self._lock:
            while self._waiting and len(taken) < self._most:
                piece = self._waiting.popleft()
                if piece[2].set_running_or_notify_cancel():
                    taken.append(piece)
        return taken
