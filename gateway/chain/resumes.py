"""When a stage dies under a request: how the request goes on, and how often it may.

A stream that ends with UNAVAILABLE is opened again on another replica, and what it lost is made again: the backbone
gets the frames that it has generated already, the watermark goes on from its last checkpoint, and the codec decodes
again as many frames as the audio depends on. So a replay is as short in the last minute of an hour as in the second
one. All stages are deterministic, so the output is the same; what the listener has is dropped, by position. All stages
of a request share one budget.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

import grpc
from opentelemetry import trace

from gateway.replica import Replica
from services.runtime import instruments
from services.runtime.errors import CallError

log = logging.getLogger(__name__)
_tracer = trace.get_tracer("csm.gateway")
T = TypeVar("T")

RESUME_PATIENCE_S = 3.0  # the replicas that are left may be full, or starting


class ResumeBudget:
    """Of one request. used: resumes so far."""

    def __init__(self, resumes: int):
        self.left, self.used = resumes, 0

    def is_left(self) -> bool:
        """Whether the request may be resumed once more."""
        return self.left > 0

    async def resume(self, stage: str, failed: Replica, error: CallError, reopen: Callable[[], Awaitable[T]]) -> T:
        """What `reopen` gives. failed: the replica whose stream ended with `error`.

        Raises: `error` when it is none that another replica could mend, when the budget is spent, and when no replica
        takes the stream.
        """
        if error.code is not grpc.StatusCode.UNAVAILABLE:
            raise error
        failed.suspect()
        if self.left <= 0:
            instruments.resumes.add(1, {"stage": stage, "outcome": "exhausted"})
            raise error
        self.left -= 1
        self.used += 1
        outcome = "refused"
        with _tracer.start_as_current_span(
            "csm.resume", attributes={"csm.stage": stage, "csm.replica": failed.address, "csm.reason": error.text}
        ) as span:
            try:
                resumed = await reopen()
                outcome = "resumed"
                return resumed
            except CallError as refusal:
                log.warning("%s: not resumed after %s: %s", stage, error.text, refusal.text)
                raise error from None
            finally:
                span.set_attribute("csm.outcome", outcome)
                instruments.resumes.add(1, {"stage": stage, "outcome": outcome})
