"""A stream that resumes on another replica: its caller sends the input again and already has the first output."""

from __future__ import annotations

import numpy as np
from google.protobuf.duration_pb2 import Duration
from numpy.typing import NDArray

from services.runtime.errors import InvalidArgument

MAX_BUFFERED_S = 3600.0


class Discard:
    """Drops the first `samples` samples of a stream."""

    def __init__(self, samples: int):
        self._samples = samples

    @property
    def missing(self) -> int:
        """Samples still to be dropped."""
        return self._samples

    def trim(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """samples: the stream's next ones [n] → those after the dropped ones [m], m ≤ n."""
        dropped = min(self._samples, len(samples))
        self._samples -= dropped
        return samples[dropped:]


def check_discard(field: str, count: int) -> int:
    """A start message's number of frames or samples to discard. Raises: InvalidArgument when it is negative."""
    if count < 0:
        raise InvalidArgument(field, f"must be at least 0, not {count}")
    return count


def buffered_seconds(buffered: Duration) -> float:
    """A start message's buffered_duration in seconds. Raises: InvalidArgument when it is out of bounds."""
    seconds = buffered.seconds + buffered.nanos / 1e9
    if not 0 <= seconds <= MAX_BUFFERED_S:
        raise InvalidArgument("start.buffered_duration", f"must be 0 to {MAX_BUFFERED_S:g} s, not {seconds:g} s")
    return seconds
