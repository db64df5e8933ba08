"""One utterance through the public client: every byte counted, every moment noted."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from csm.common.v1 import common_pb2
from csm.speech.v1 import speech_pb2
from csm_client import ContextTurn, SpeechClient, SpeechStream
from csm_client.exceptions import Overloaded, SpeechError

from gateway.cli.bench.listener import Listener
from gateway.cli.bench.pcm import SAMPLE_BYTES, first_audible
from gateway.cli.bench.plan import Plan
from gateway.cli.bench.record import ACCOUNTING, OK, Record


async def speak(
    client: SpeechClient,
    bundle: common_pb2.BundleIdentity,
    plan: Plan,
    text: str,
    record: Record,
    clock: Callable[[], float],
    prompt: Sequence[ContextTurn] = (),
) -> Listener:
    """Fill `record`, also when the utterance fails or is cancelled. `clock`: seconds since the load began."""
    listener = Listener(plan.buffer_s, plan.full_load_s)
    stream = client.stream(
        text,
        speaker=plan.speaker,
        max_audio_ms=plan.max_audio_ms(text),
        context=prompt,
        encoding="pcm_s16le",
        timeout_s=plan.timeout_s,
    )
    try:
        async with stream:
            async for pcm in stream:
                record.bytes += len(pcm)
                hear(listener, pcm, bundle.sample_rate_hz, clock())
        record.problem = _miscount(stream, bundle, record.bytes)
        record.status = ACCOUNTING if record.problem else OK
    except SpeechError as error:
        record.status, record.problem = error.code.name, str(error)
        if isinstance(error, Overloaded):
            record.retry_after_s = error.retry_after_s
    finally:
        record.note(listener, clock())
        if stream.started is not None:
            record.trace_id = stream.started.trace_id
        if stream.summary is not None:
            note_summary(stream.summary, record)
    return listener


def hear(listener: Listener, pcm: bytes, sample_rate_hz: int, now_s: float) -> None:
    """Audio came now; pcm: whole samples."""
    audible = first_audible(pcm) if listener.audible_s is None else None
    length_s = len(pcm) / SAMPLE_BYTES / sample_rate_hz
    listener.hear(now_s, length_s, None if audible is None else audible / sample_rate_hz)


def _miscount(stream: SpeechStream, bundle: common_pb2.BundleIdentity, received: int) -> str:
    assert stream.started is not None and stream.summary is not None
    return miscount(stream.started.format, stream.summary, bundle, received)


def miscount(
    form: common_pb2.AudioFormat, summary: speech_pb2.SpeechSummary, bundle: common_pb2.BundleIdentity, received: int
) -> str:
    """How the bytes that came differ from what was promised; empty when they do not."""
    if form.encoding != common_pb2.AUDIO_ENCODING_PCM_S16LE or form.sample_rate_hz != bundle.sample_rate_hz:
        return f"asked for s16le at {bundle.sample_rate_hz} Hz, got {form.encoding} at {form.sample_rate_hz} Hz"
    # CSM: 24,000 samples over 12.5 frames a second, 1,920 a frame.
    expected = round(summary.frames * bundle.sample_rate_hz / bundle.frame_rate_hz)
    if summary.samples != expected:
        return f"{summary.frames} frames are {expected} samples, the summary says {summary.samples}"
    if received != expected * SAMPLE_BYTES:
        return f"{summary.frames} frames are {expected * SAMPLE_BYTES} bytes, {received} came"
    return ""


def note_summary(summary: speech_pb2.SpeechSummary, record: Record) -> None:
    """What the gateway says of it."""
    record.frames = summary.frames
    record.server_first_audio_s = summary.time_to_first_audio.ToNanoseconds() / 1e9
    record.stages = {timing.stage: timing.first_output.ToNanoseconds() / 1e9 for timing in summary.stages}
