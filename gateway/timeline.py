"""When each stage of one request first and last gave something, and whether its listener ran dry."""

from __future__ import annotations

import time

from csm.speech.v1 import speech_pb2
from opentelemetry import trace

from services.runtime import telemetry

STAGES = ("tokenizer", "backbone", "codec", "watermark")


class Timeline:
    """Times of one request, in seconds since its start."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._first: dict[str, float] = {}
        self._last: dict[str, float] = {}
        self._play_start = 0.0  # when a listener who never pauses would have begun
        self._sent_s = 0.0
        self.underruns = 0

    def now(self) -> float:
        """Seconds since the request's start."""
        return time.perf_counter() - self._start

    def output(self, stage: str) -> None:
        """`stage` gave something just now."""
        now = self.now()
        if stage not in self._first:
            self._first[stage] = now
            telemetry.stage_first_output.record(now, {"stage": stage})
            trace.get_current_span().add_event("first_output", {"stage": stage})
        self._last[stage] = now

    def audio(self, seconds: float) -> None:
        """Marked audio of that length goes to the caller, who plays it from the first piece on."""
        now = self.now()
        if self._sent_s == 0.0:
            self._play_start = now
            telemetry.time_to_first_audio.record(now)
        elif now > self._play_start + self._sent_s:
            self.underruns += 1
            telemetry.stream_underruns.add(1)
            self._play_start = now - self._sent_s
        self._sent_s += seconds

    def fill(self, summary: speech_pb2.SpeechSummary, audio_s: float) -> None:
        """Write the times into `summary` and the request's metrics."""
        took = self.now()
        summary.audio_duration.FromNanoseconds(round(audio_s * 1e9))
        if audio_s > 0:
            summary.time_to_first_audio.FromNanoseconds(round(self._first["watermark"] * 1e9))
            summary.real_time_factor = took / audio_s
            telemetry.real_time_factor.record(took / audio_s)
        for stage in STAGES:
            if stage in self._first:
                timing = summary.stages.add(stage=stage)
                timing.first_output.FromNanoseconds(round(self._first[stage] * 1e9))
                timing.last_output.FromNanoseconds(round(self._last[stage] * 1e9))
