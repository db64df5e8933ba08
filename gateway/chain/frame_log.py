"""The frames of a stream so far, kept small: a stage that dies gets them again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import overload

from csm.common.v1 import common_pb2

_FORGOTTEN_AT_ONCE = 256  # frames: to move the rest costs more than they take


class StoredFrames(Sequence[common_pb2.Frame]):
    """Frames as a FrameLog keeps them; each becomes a message when it is asked for."""

    __slots__ = ("_messages",)

    def __init__(self, messages: Sequence[bytes]):
        self._messages = messages

    def __len__(self) -> int:
        return len(self._messages)

    def __iter__(self) -> Iterator[common_pb2.Frame]:
        return map(common_pb2.Frame.FromString, self._messages)

    @overload
    def __getitem__(self, index: int) -> common_pb2.Frame: ...
    @overload
    def __getitem__(self, index: slice) -> StoredFrames: ...
    def __getitem__(self, index: int | slice) -> common_pb2.Frame | StoredFrames:
        if isinstance(index, slice):
            return StoredFrames(self._messages[index])
        return common_pb2.Frame.FromString(self._messages[index])


class FrameLog:
    """Frames of K codes each, as they are on the wire: two bytes a code and some 40 a frame.

    To read codes one by one takes Python three times as long as to serialize the frame.

    first: the frame that it begins with, after those that were forgotten.
    """

    def __init__(self) -> None:
        self._messages: list[bytes] = []
        self.first = 0

    def __len__(self) -> int:
        """Frames appended so far, the forgotten ones included."""
        return self.first + len(self._messages)

    def extend(self, frames: Iterable[common_pb2.Frame]) -> None:
        """Append `frames`."""
        self._messages += [frame.SerializeToString() for frame in frames]

    def forget(self, before: int) -> None:
        """Frames before `before` are not asked for again."""
        if (count := min(before, len(self)) - self.first) >= _FORGOTTEN_AT_ONCE:
            del self._messages[:count]
            self.first += count

    def stored(self, stop: int) -> StoredFrames:
        """The first `stop` frames, none of which may be forgotten, as they are kept."""
        return StoredFrames(self._messages[:stop])

    def frames(self, start: int = 0, stop: int | None = None) -> list[common_pb2.Frame]:
        """Frames `start` to `stop`, as messages. Raises: ValueError when some of them are forgotten."""
        if start < self.first:
            raise ValueError(f"frames before {self.first} are forgotten, asked for {start}")
        stop = len(self) if stop is None else min(stop, len(self))
        return [common_pb2.Frame.FromString(data) for data in self._messages[start - self.first : stop - self.first]]

    def chunks(self, start: int, size: int) -> Iterator[list[common_pb2.Frame]]:
        """All frames from `start` on, at most `size` together."""
        for begin in range(start, len(self), size):
            yield self.frames(begin, begin + size)
