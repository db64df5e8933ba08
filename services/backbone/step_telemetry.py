"""Telemetry of the engine's steps: time and batch size as metrics, every Nth step as a span.

A step serves many requests, so it is no child of any: it is the root of a trace of its own, linked to
the spans of the requests in it (the first 128, OpenTelemetry's own limit). Called by the engine's
thread, between two frames.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from opentelemetry import trace
from opentelemetry.context import Context

from services.backbone.request import SequenceState
from services.runtime import instruments

_tracer = trace.get_tracer("csm.backbone")


class StepTelemetry:
    """For Engine.on_step. every: every Nth step becomes a span; 0 is none."""

    def __init__(self, every: int):
        self._every = every
        self._steps = 0

    def __call__(self, seconds: float, seqs: Sequence[SequenceState]) -> None:
        instruments.frame_step.record(seconds)
        instruments.batch_size.record(len(seqs))
        self._steps += 1
        if self._every and self._steps % self._every == 0:
            self._span(seconds, seqs)

    def _span(self, seconds: float, seqs: Sequence[SequenceState]) -> None:
        now_ns = time.time_ns()
        contexts = [getattr(seq.stream, "span_context", None) for seq in seqs]
        links = [trace.Link(context) for context in contexts if context is not None and context.trace_flags.sampled]
        span = _tracer.start_span(
            "csm.backbone.step",
            context=Context(),  # a root, even if a span is current
            links=links[:128],
            attributes={"csm.batch_size": len(seqs)},
            start_time=now_ns - int(seconds * 1e9),
        )
        span.end(now_ns)
