"""The frames of a stream so far, kept small: a stage that dies gets them again."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator

from csm.common.v1 import common_pb2


class FrameLog:
    """Frames of K codes each; 4 K bytes a frame."""

    def __init__(self) -> None:
        self._codes = array("I")
        self._codebooks = 0
        self._frames = 0

    def __len__(self) -> int:
        return self._frames

    def extend(self, frames: Iterable[common_pb2.Frame]) -> None:
        """Append `frames`, each with as many codes as the others."""
        for frame in frames:
            self._codebooks = self._codebooks or len(frame.codes)
            self._codes.extend(frame.codes)
            self._frames += 1

    def frames(self, start: int = 0, stop: int | None = None) -> list[common_pb2.Frame]:
        """Frames `start` to `stop`, as messages."""
        stop = self._frames if stop is None else min(stop, self._frames)
        k = self._codebooks
        return [common_pb2.Frame(codes=self._codes[n * k : (n + 1) * k]) for n in range(start, stop)]

    def chunks(self, size: int) -> Iterator[list[common_pb2.Frame]]:
        """All frames, at most `size` together."""
        for start in range(0, self._frames, size):
            yield self.frames(start, start + size)
