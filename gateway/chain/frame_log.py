"""The frames of a stream so far, kept small: a stage that dies gets them again."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator

from csm.common.v1 import common_pb2

_FORGOTTEN_AT_ONCE = 256  # frames: to move the rest costs more than they take


class FrameLog:
    """Frames of K codes each; 4 K bytes a frame.

    first: the frame that it begins with, after those that were forgotten.
    """

    def __init__(self) -> None:
        self._codes = array("I")
        self._codebooks = 0
        self._frames = 0
        self.first = 0

    def __len__(self) -> int:
        """Frames appended so far, the forgotten ones included."""
        return self._frames

    def extend(self, frames: Iterable[common_pb2.Frame]) -> None:
        """Append `frames`, each with as many codes as the others."""
        for frame in frames:
            self._codebooks = self._codebooks or len(frame.codes)
            self._codes.extend(frame.codes)
            self._frames += 1

    def forget(self, before: int) -> None:
        """Frames before `before` are not asked for again."""
        if (count := min(before, self._frames) - self.first) >= _FORGOTTEN_AT_ONCE:
            del self._codes[: count * self._codebooks]
            self.first += count

    def frames(self, start: int = 0, stop: int | None = None) -> list[common_pb2.Frame]:
        """Frames `start` to `stop`, as messages. Raises: ValueError when some of them are forgotten."""
        if start < self.first:
            raise ValueError(f"frames before {self.first} are forgotten, asked for {start}")
        stop = self._frames if stop is None else min(stop, self._frames)
        k = self._codebooks
        places = range(start - self.first, stop - self.first)
        return [common_pb2.Frame(codes=self._codes[n * k : (n + 1) * k]) for n in places]

    def chunks(self, start: int, size: int) -> Iterator[list[common_pb2.Frame]]:
        """All frames from `start` on, at most `size` together."""
        for begin in range(start, self._frames, size):
            yield self.frames(begin, begin + size)
