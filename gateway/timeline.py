"""When each stage of one request first and last gave something, and whether its listener had a buffer underrun.

What it knows goes three ways: into the answer's summary, into metrics, and onto the request's span, where
`gateway.cli.trace.playback` reads it back from a trace.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from csm.speech.v1 import speech_pb2
from opentelemetry import trace

from gateway.stage_names import STAGES
from services.runtime import instruments

# OpenTelemetry keeps 128 events a span by default, and the first outputs are among them.
MAX_AUDIO_EVENTS, MAX_UNDERRUN_EVENTS = 100, 16
_FIRST, _LATE = 24, 32  # chunks that are kept in any case when there are more than that


@dataclass(frozen=True)
class _Chunk:
    """Audio as it was ready for the caller. lead_s: how much its listener had left to play; negative is an underrun."""

    time_ns: int
    position_s: float
    duration_s: float
    lead_s: float


class Timeline:
    """Times of one request, in seconds since its start.

    The listener begins to play `buffer_s` after the first audio is ready, and again after an underrun. Time for which
    the server waited for its caller does not count: for a reader that pauses, or for text.
    """

    def __init__(self, buffer_s: float = 0.0, *, streamed: bool = True) -> None:
        """streamed: whether there is a listener at all; a unary call has none."""
        self._buffer_s, self._streamed = buffer_s, streamed
        self._waited_s = 0.0  # for the caller
        self._start = time.perf_counter()
        self._span = trace.get_current_span()
        self._chunks: list[_Chunk] = []
        self._first: dict[str, float] = {}
        self._last: dict[str, float] = {}
        self._play_start = 0.0  # when a listener who never pauses would have begun
        self._first_audio = 0.0  # the same without a buffer
        self._buffer_needed_s = 0.0  # the largest lateness of a piece for one who plays from the first on
        self._sent_s = 0.0
        self._last_audio = 0.0
        self.underruns = 0

    def use_current_span(self) -> None:
        """What comes from now on goes onto the span that is current: the call's, or the turn's."""
        self._span = trace.get_current_span()

    def restart(self, start_s: float) -> None:
        """What is timed begins only now: at `start_s`, on time.perf_counter. Nothing has come of it yet."""
        self._start, self._waited_s = start_s, 0.0

    @property
    def audio_s(self) -> float:
        """Seconds of audio that were ready for the caller."""
        return self._sent_s

    def now(self) -> float:
        """Seconds since the request's start."""
        return time.perf_counter() - self._start

    def output(self, stage: str) -> None:
        """`stage` gave something just now."""
        now = self.now()
        if stage not in self._first:
            self._first[stage] = now
            instruments.request_first_output.record(now, {"stage": stage})
            self._span.add_event("first_output", {"stage": stage})
        self._last[stage] = now

    def audio(self, seconds: float) -> None:
        """Marked audio of that length is ready for the caller."""
        now = self.now() - self._waited_s
        instruments.audio.add(seconds)
        if self._streamed:
            if not self._chunks:
                self._play_start = now + self._buffer_s
                self._first_audio = now
                instruments.time_to_first_audio.record(now)
                self._span.set_attribute("csm.time_to_first_audio_ms", _ms(now))
            self._buffer_needed_s = max(self._buffer_needed_s, now - self._first_audio - self._sent_s)
            lead_s = self._play_start + self._sent_s - now
            if lead_s < 0:
                self.underruns += 1
                instruments.underruns.add(1)
                self._play_start = now + self._buffer_s - self._sent_s
            self._chunks.append(_Chunk(time.time_ns(), self._sent_s, seconds, lead_s))
        self._sent_s += seconds
        self._last_audio = now

    def waited(self, seconds: float) -> None:
        """The server waited so long for its caller."""
        self._waited_s += seconds

    def close(self) -> None:
        """Put the audio's chunks onto the request's span, however the request ended, and count its stream."""
        self._span.set_attribute("csm.audio_ms", _ms(self._sent_s))
        if self._chunks:
            instruments.buffer_needed.record(self._buffer_needed_s)
            self._span.set_attribute("csm.buffer_needed_ms", _ms(self._buffer_needed_s))
        if self._streamed:
            self._span.set_attributes({"csm.chunks": len(self._chunks), "csm.underruns": self.underruns})
        for chunk in _chosen(self._chunks):
            self._span.add_event(
                "audio",
                {
                    "csm.position_ms": _ms(chunk.position_s),
                    "csm.duration_ms": _ms(chunk.duration_s),
                    "csm.lead_ms": _ms(chunk.lead_s),
                },
                chunk.time_ns,
            )

    def fill(self, summary: speech_pb2.SpeechSummary, audio_s: float) -> None:
        """Write the times into `summary` and the request's metrics."""
        took = self._last_audio
        summary.audio_duration.FromNanoseconds(round(audio_s * 1e9))
        if audio_s > 0 and "watermark" in self._first:
            summary.time_to_first_audio.FromNanoseconds(round(self._first["watermark"] * 1e9))
            summary.real_time_factor = took / audio_s
            instruments.real_time_factor.record(took / audio_s)
        for stage in STAGES:
            if stage in self._first:
                timing = summary.stages.add(stage=stage)
                timing.first_output.FromNanoseconds(round(self._first[stage] * 1e9))
                timing.last_output.FromNanoseconds(round(self._last[stage] * 1e9))


def _chosen(chunks: list[_Chunk]) -> list[_Chunk]:
    """At most MAX_AUDIO_EVENTS of them, in order: the first, the last, the latest for their listener, and evenly
    of the rest. What is left out is seen in the gap between two positions."""
    if len(chunks) <= MAX_AUDIO_EVENTS:
        return chunks
    late = sorted((n for n, chunk in enumerate(chunks) if chunk.lead_s < 0), key=lambda n: chunks[n].lead_s)
    kept = {*range(_FIRST), *late[:_LATE], len(chunks) - 1}
    room = MAX_AUDIO_EVENTS - len(kept)
    kept.update(range(0, len(chunks), -(-len(chunks) // room)))
    return [chunks[n] for n in sorted(kept)]


def _ms(value_s: float) -> float:
    return round(value_s * 1e3, 3)
