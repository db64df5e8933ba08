"""`csm say`: listen to a stream, write it down as a WAV file, and tell how it went."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from csm.common.v1 import common_pb2
from csm.speech.v1 import speech_pb2
from csm_client import SpeechStream
from opentelemetry import trace
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, format_trace_id
from rich.console import Console

from gateway.cli import state
from gateway.cli.trace.traces import TraceStore
from gateway.cli.trace.waterfall import bars_of_summary, bars_of_trace, draw, seconds
from services.runtime.audio import wav_header

_TRACE_WAIT_S = 6.0
_ENDS = {
    common_pb2.FINISH_REASON_END_OF_SPEECH: "the model ended it",
    common_pb2.FINISH_REASON_MAX_LENGTH: "cut at the length limit",
}


@dataclass(frozen=True)
class Spoken:
    """A stream heard to its end. pcm: s16le, mono. Times are the listener's own."""

    pcm: bytes
    started: speech_pb2.SpeechStarted
    summary: speech_pb2.SpeechSummary
    first_audio_s: float
    took_s: float

    @property
    def audio_s(self) -> float:
        return len(self.pcm) / 2 / self.started.format.sample_rate_hz

    def wav(self) -> bytes:
        return wav_header("s16le", self.started.format.sample_rate_hz, 1, len(self.pcm)) + self.pcm

    def describe(self) -> str:
        """Two lines: what came of it, and how fast."""
        how = _ENDS.get(self.summary.finish_reason, "ended")
        if not self.pcm:
            return f"no audio, {how} before the first frame, seed {self.summary.seed}"
        return (
            f"{self.audio_s:.2f} s of speech, {how}, seed {self.summary.seed}\n"
            f"first audio after {seconds(self.first_audio_s)}, all after {seconds(self.took_s)} "
            f"(real-time factor {self.took_s / self.audio_s:.2f})"
        )


async def listen(stream: SpeechStream, progress: Console) -> Spoken:
    """Take in the whole stream, with a line of progress in a terminal. Raises: SpeechError."""
    begun, first_audio_s, pcm = time.perf_counter(), 0.0, bytearray()
    with progress.status("waiting for the first audio") as status:
        async for data in stream:
            now_s = time.perf_counter() - begun
            first_audio_s = first_audio_s or now_s
            pcm += data
            audio_s = len(pcm) / 2 / stream.started.format.sample_rate_hz
            status.update(
                f"{audio_s:.2f} s of audio · first after {seconds(first_audio_s)} · real-time factor {now_s / audio_s:.2f}"
            )
    return Spoken(bytes(pcm), stream.started, stream.summary, first_audio_s, time.perf_counter() - begun)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write that becomes `path` only when the block ends well. Raises: OSError, before the block if it can."""
    path = path.resolve()
    if path.exists() and not path.is_file():  # a device or a pipe is written to; a folder is refused by open
        with path.open("wb") as file:
            yield file
        return
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with draft.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


@contextmanager
def new_trace() -> Iterator[str]:
    """A trace for the calls made inside; its id is known even when they are refused."""
    ids = RandomIdGenerator()
    span = SpanContext(ids.generate_trace_id(), ids.generate_span_id(), False, TraceFlags(TraceFlags.SAMPLED))
    with trace.use_span(NonRecordingSpan(span)):
        yield format_trace_id(span.trace_id)


def remember(stream: SpeechStream, trace_id: str, store: TraceStore | None) -> str:
    """Note the request as the last one, for `csm trace`; returns its trace id.

    trace_id: the one it was sent with. A server between may have given it another.
    """
    trace_id = (stream.started.trace_id if stream.started else "") or trace_id
    state.remember(state.Said(trace_id, str(store.folder.resolve()) if store else None), state.state_dir())
    return trace_id


async def show_waterfall(
    console: Console, trace_id: str, summary: speech_pb2.SpeechSummary | None, store: TraceStore | None
) -> None:
    """Print where a request's time went: from its trace, else from its summary. Nothing when it has neither."""
    spans, whole = [], False
    if store is not None:
        with console.status("waiting for the trace"):
            spans, whole = await store.wait(trace_id, _TRACE_WAIT_S)
    if any(span.service == "gateway" for span in spans):
        source = f"(trace {trace_id}{'' if whole else ', incomplete'})"
        bars = bars_of_trace(spans)
    elif summary is not None:
        why = "no `csm up` here has its trace" if store is None else "its trace has not arrived"
        bars, source = bars_of_summary(summary), f"by the answer's summary ({why})"
    else:
        return
    console.print(f"\nWhere the time went {source}:")
    console.print(draw(bars, width=min(console.width, 100)))
