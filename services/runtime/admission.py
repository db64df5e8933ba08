"""How many calls may be inside at once. Admission happens before a call's first message, per method."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from services.runtime.errors import Overloaded


class Admission:
    """Counts calls in; refuses beyond `limit`. For use on one event loop.

    `maximum_concurrent_rpcs` of a gRPC server would do the same to health checks, so it is never set.
    """

    def __init__(self, what: str, limit: int, *, retry_after_s: float = 1.0):
        self.what, self.limit, self.retry_after_s = what, limit, retry_after_s
        self.inside = 0

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Hold a place while the block runs. Raises: Overloaded when none is free."""
        if self.inside >= self.limit:
            raise Overloaded(f"{self.what}: all {self.limit} places are taken", self.retry_after_s)
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1
