"""Listen to a stream, write it to a file or a pipe, and report how it went."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from csm.common.v1 import common_pb2
from csm.speech.v1 import speech_pb2
from csm_client import SpeechStream
from opentelemetry import trace
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, format_trace_id
from rich.console import Console

from gateway.cli import state
from gateway.cli.blocking import in_daemon_thread
from gateway.cli.trace.spans import Span, TraceStore
from gateway.cli.trace.waterfall import bars_of_summary, bars_of_trace, draw, seconds
from gateway.cli.wav import state_flac_length, wav_header

_TRACE_WAIT_S = 6.0
_ENDS = {
    common_pb2.FINISH_REASON_END_OF_SPEECH: "the model ended it",
    common_pb2.FINISH_REASON_MAX_LENGTH: "CUT at its cap: the text is not spoken to its end",
    common_pb2.FINISH_REASON_SILENCE: "ended where the model had fallen silent",
    common_pb2.FINISH_REASON_EMPTY: "the model ended it",
}


@dataclass(frozen=True)
class Utterance:
    """A stream heard to its end. samples: how many it has. Times are the listener's own."""

    samples: int
    started: speech_pb2.SpeechStarted
    summary: speech_pb2.SpeechSummary
    first_audio_s: float
    took_s: float

    @property
    def audio_s(self) -> float:
        return self.samples / self.started.format.sample_rate_hz

    @property
    def is_complete(self) -> bool:
        """Whether there is speech and no cap cut it."""
        return self.samples > 0 and self.summary.finish_reason != common_pb2.FINISH_REASON_MAX_LENGTH

    def describe(self) -> str:
        """Two lines: the result, and how fast it came."""
        how = _ENDS.get(self.summary.finish_reason, "ended")
        if not self.samples:
            return f"no audio, {how} before the first frame, seed {self.summary.seed}"
        return (
            f"{self.audio_s:.2f} s of speech, {how}, seed {self.summary.seed}\n"
            f"first audio after {seconds(self.first_audio_s)}, all after {seconds(self.took_s)} "
            f"(real-time factor {self.took_s / self.audio_s:.2f})"
        )


class Sink(Protocol):
    """Where an utterance goes. data: 16-bit samples, or the bytes of a file. samples: of the whole utterance."""

    async def write(self, data: bytes, sample_rate_hz: int) -> None: ...

    async def finish(self, sample_rate_hz: int, samples: int) -> None: ...


class FileSink:
    """A WAV file whose header states its length, which is filled in at the end."""

    def __init__(self, file: BinaryIO):
        self._file, self._bytes = file, 0

    async def write(self, pcm: bytes, sample_rate_hz: int) -> None:
        if not self._bytes:
            self._file.write(wav_header(sample_rate_hz, None))
        self._file.write(pcm)
        self._bytes += len(pcm)

    async def finish(self, sample_rate_hz: int, samples: int) -> None:
        self._file.seek(0)
        self._file.write(wav_header(sample_rate_hz, self._bytes))


class EncodedSink:
    """A file as the gateway has encoded it."""

    def __init__(self, file: BinaryIO):
        self._file = file

    async def write(self, data: bytes, sample_rate_hz: int) -> None:
        self._file.write(data)

    async def finish(self, sample_rate_hz: int, samples: int) -> None:
        state_flac_length(self._file, samples)


class PipeSink:
    """Standard output or a pipe: what comes leaves at once. wav: samples, behind a header of the largest length.

    A named pipe is opened with the first samples: that may take until something reads from it.
    """

    def __init__(self, path: Path, *, wav: bool = True):
        self._path, self._fd, self._wav = path, -1, wav

    async def write(self, data: bytes, sample_rate_hz: int) -> None:
        # A player takes samples no faster than it plays them.
        await in_daemon_thread(self._write, data, wav_header(sample_rate_hz, None) if self._wav else b"")

    async def finish(self, sample_rate_hz: int, samples: int) -> None:
        if self._fd < 0:
            await in_daemon_thread(self._write, b"", wav_header(sample_rate_hz, 0) if self._wav else b"")

    def close(self) -> None:
        """Let the reader know that this was all."""
        if self._fd < 0 and str(self._path) != "-":
            with suppress(OSError):  # no reader
                self._fd = os.open(self._path, os.O_WRONLY | os.O_NONBLOCK)
        if self._fd > 2:
            os.close(self._fd)

    def _write(self, written: bytes, header: bytes) -> None:
        data = memoryview(written)
        if self._fd < 0:
            # Not through sys.stdout, whose lock a blocked thread would hold at exit.
            self._fd = sys.stdout.fileno() if str(self._path) == "-" else os.open(self._path, os.O_WRONLY)
            data = memoryview(header + written)
        while data:
            data = data[os.write(self._fd, data) :]


class TeeSink:
    """Several at once; the slowest sets the pace."""

    def __init__(self, *sinks: Sink):
        self._sinks = sinks

    async def write(self, data: bytes, sample_rate_hz: int) -> None:
        for sink in self._sinks:
            await sink.write(data, sample_rate_hz)

    async def finish(self, sample_rate_hz: int, samples: int) -> None:
        for sink in self._sinks:
            await sink.finish(sample_rate_hz, samples)


async def listen(stream: SpeechStream, progress: Console, sink: Sink, *, encoded: bool = False) -> Utterance:
    """Take in the whole stream, with a line of progress in a terminal. encoded: it has bytes of a file, not samples.

    Raises: SpeechError, OSError.
    """
    begun, first_audio_s, size = time.perf_counter(), 0.0, 0
    with progress.status("waiting for the first audio") as status:
        async for data in stream:
            assert stream.started is not None
            now_s, rate_hz = time.perf_counter() - begun, stream.started.format.sample_rate_hz
            first_audio_s = first_audio_s or now_s
            size += len(data)
            audio_s = size / 2 / rate_hz
            status.update(
                f"{size / 1000:.0f} kB · first after {seconds(first_audio_s)}"
                if encoded
                else f"{audio_s:.2f} s of audio · first after {seconds(first_audio_s)} · real-time factor {now_s / audio_s:.2f}"
            )
            await sink.write(data, rate_hz)
    assert stream.started is not None and stream.summary is not None
    took_s = time.perf_counter() - begun
    samples = stream.summary.samples if encoded else size // 2
    await sink.finish(stream.started.format.sample_rate_hz, samples)
    return Utterance(samples, stream.started, stream.summary, first_audio_s, took_s)


@contextmanager
def opened(path: Path, *, wav: bool = True) -> Iterator[Sink]:
    """Where to write; `-` is standard output. wav: samples come, and a WAV is written, else what comes is.

    Raises: OSError, before the block if it can.
    """
    if str(path) == "-" or (path.exists() and not path.is_file() and not path.is_dir()):
        if str(path) != "-" and not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        pipe = PipeSink(path, wav=wav)
        try:
            yield pipe
        finally:
            pipe.close()
    else:
        with replacing(path) as file:
            yield FileSink(file) if wav else EncodedSink(file)


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
        with draft.open("x+b") as file:
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


def save_last_request(stream: SpeechStream, trace_id: str, store: TraceStore | None) -> str:
    """Note the request as the last one, for `csm trace`; returns its trace id.

    trace_id: the one it was sent with. A server between may have given it another.
    """
    trace_id = (stream.started.trace_id if stream.started else "") or trace_id
    request = state.LastRequest(trace_id, str(store.folder.resolve()) if store else None)
    state.save_last_request(request, state.state_dir())
    return trace_id


async def show_waterfall(
    console: Console, trace_id: str, summary: speech_pb2.SpeechSummary | None, store: TraceStore | None
) -> None:
    """Print where a request's time went: from its trace, else from its summary. Nothing when it has neither."""
    spans: list[Span] = []
    is_complete = False
    if store is not None:
        with console.status("waiting for the trace"):
            spans, is_complete = await store.wait(trace_id, _TRACE_WAIT_S)
    if any(span.service == "gateway" for span in spans):
        source = f"(trace {trace_id}{'' if is_complete else ', incomplete'})"
        bars = bars_of_trace(spans)
    elif summary is not None:
        why = "no `csm up` here has its trace" if store is None else "its trace has not arrived"
        bars, source = bars_of_summary(summary), f"by the answer's summary ({why})"
    else:
        return
    console.print(f"\nWhere the time went {source}:")
    console.print(draw(bars, width=min(console.width, 100)))
