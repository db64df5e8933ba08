"""How long a request may still take."""

from __future__ import annotations

import time
from collections.abc import Callable

_SLOWEST = 3.0  # a long text may take this many times the length of its speech


class Deadline:
    """Call it for the seconds left: of the caller's deadline or of our own, whichever is nearer."""

    def __init__(
        self,
        time_remaining: Callable[[], float | None],
        own_s: float,
        speech_s: Callable[[], float] = lambda: 0.0,
    ):
        """time_remaining: of the call, as gRPC has it. speech_s: likely length of the speech, as far as it is known."""
        self._time_remaining, self._own_s, self._speech_s = time_remaining, own_s, speech_s
        self._began_s = time.monotonic()

    def __call__(self) -> float:
        own_s = self._began_s + max(self._own_s, _SLOWEST * self._speech_s()) - time.monotonic()
        theirs_s = self._time_remaining()
        return max(0.0, own_s if theirs_s is None else min(own_s, theirs_s))

    def waited(self, seconds: float) -> None:
        """The request waited so long for its caller, which does not count."""
        self._began_s += seconds
