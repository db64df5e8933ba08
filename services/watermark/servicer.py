"""The watermark's gRPC service on top of embedder and detector. Imports no torch."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING

import grpc
import numpy as np
from csm.common.v1 import common_pb2
from csm.watermark.v1 import watermark_pb2, watermark_pb2_grpc
from opentelemetry import trace

from models.bundle import Bundle
from services.engine.batcher import Batcher
from services.runtime import instruments
from services.runtime.admission import Admission, PendingStreams
from services.runtime.audio import (
    MAX_PEAK,
    Encoding,
    from_bytes,
    to_bytes,
)
from services.runtime.errors import InternalError, InvalidArgument
from services.runtime.identity import identity
from services.runtime.playback_deadline import PlaybackDeadline
from services.runtime.pool import Pool
from services.runtime.replay import Discard, buffered_seconds, check_discard
from services.runtime.request_reader import limit_idle
from services.runtime.sample_encodings import ENCODINGS
from services.runtime.version import version
from services.watermark.config import WatermarkSettings
from services.watermark.detect_servicer import DetectServicer
from services.watermark.key_ring import Key

if TYPE_CHECKING:
    from services.watermark.detector import Detector
    from services.watermark.embedder import Embedder
    from services.watermark.stream import Checkpoint, EmbedStream

_tracer = trace.get_tracer("csm.watermark")
_EMBED = {"stage": "watermark", "rpc.method": "csm.watermark.v1.WatermarkService/Embed"}
_DETECT = {"stage": "watermark", "rpc.method": "csm.watermark.v1.WatermarkService/Detect"}
# A message may hold minutes; a stream takes its turn in the pool with two seconds at most.
_PIECE_S = 2


class WatermarkServicer(watermark_pb2_grpc.WatermarkServiceServicer):
    """keys: newest first; the embedder marks with the first. marking, searching: where the nets' work runs; a search takes
    long and must not delay a stream."""

    def __init__(
        self,
        settings: WatermarkSettings,
        bundle: Bundle,
        keys: Sequence[Key],
        embedder: Embedder,
        detector: Detector,
        marking: Batcher[tuple[EmbedStream, np.ndarray | None], np.ndarray],
        searching: Pool,
    ):
        self._settings, self._bundle, self._key_id = settings, bundle, keys[0].id
        self._embedder, self._marking = embedder, marking
        self._first_samples = embedder.first_samples
        self._streams = Admission("watermark streams", settings.streams)
        self._pending = PendingStreams("watermark streams", 2 * settings.streams + 64)
        detections = Admission("watermark detections", settings.detections, retry_after_s=2.0)
        self._detect = DetectServicer(
            detector,
            searching,
            detections,
            keys,
            max_clip_s=settings.max_detect_s,
            time_limit_s=settings.search_time_s,
        )
        instruments.observe_admission(self._streams, "csm.watermark.streams")
        instruments.observe(embedder, "csm.watermark.eager_passes", lambda embedder: embedder.eager_passes)
        instruments.observe_admission(detections, "csm.watermark.detections")

    async def Embed(
        self, request_iterator: AsyncIterator[watermark_pb2.EmbedRequest], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[watermark_pb2.EmbedResponse]:
        began, requested_s = time.perf_counter(), time.monotonic()
        first = await self._pending.first_message(request_iterator)
        if first is None or first.WhichOneof("event") != "start":
            raise InvalidArgument("event", "the first message must be start")
        encoding = self._stream_encoding(first.start.format)
        discarded = check_discard("start.discard_samples", first.start.discard_samples)
        deadline = PlaybackDeadline(requested_s + buffered_seconds(first.start.buffered_duration))
        with self._streams.enter():
            stream, received, emitted = self._open(first.start, discarded)
            discard, sent, compute_s = Discard(discarded - emitted), 0, 0.0
            next_checkpoint = emitted + self._bundle.sample_rate_hz
            try:
                yield self._started(first.start.format.encoding, received)
                limit_idle(request_iterator, deadline.deadline_s)
                async with aclosing(self._pieces(request_iterator, encoding)) as pieces:
                    async for samples in pieces:
                        asked_ns = time.time_ns()
                        marked, seconds = await self._advance(stream, samples, deadline.deadline_s)
                        received += len(samples) if samples is not None else 0
                        compute_s += seconds
                        if not len(marked):
                            continue
                        emitted += len(marked)
                        marked = discard.trim(marked)
                        # With 0 s of audio the deadline is now at the earliest: a replay alternates with others.
                        deadline.audio_sent(len(marked) / self._bundle.sample_rate_hz, time.monotonic())
                        limit_idle(request_iterator, deadline.deadline_s)
                        given, data = len(marked), to_bytes(marked, encoding)
                        del marked  # a caller who waits must not keep the memory of all streams of its pass
                        if not given:
                            continue
                        if not sent:
                            instruments.stage_first_output.record(time.perf_counter() - began, _EMBED)
                            trace.get_current_span().add_event("first_frame")
                            # The delay that this stage adds besides the look-ahead.
                            _tracer.start_span("first_mark", start_time=asked_ns).end()
                        sent += given
                        # Filled in place: a message that is put into another one is copied once more.
                        response = watermark_pb2.EmbedResponse()
                        response.audio.data = data
                        if emitted >= next_checkpoint and (checkpoint := stream.checkpoint) is not None:
                            _write_checkpoint(response.audio.checkpoint, checkpoint)
                            next_checkpoint = emitted + self._bundle.sample_rate_hz
                        yield response
            finally:
                stream.close()
            if received < emitted:
                text = f"begins to mark at sample {emitted}, but only {received} came"
                raise InvalidArgument("start.checkpoint.first_marked_sample", text)
            if emitted != received:
                raise InternalError(f"the embedder gave {emitted} samples for {received}")
            if discard.missing:
                text = f"is {first.start.discard_samples}, but only {received} samples came"
                raise InvalidArgument("start.discard_samples", text)
            trace.get_current_span().set_attribute("csm.samples", sent)
            finished = watermark_pb2.EmbedFinished(samples=sent)
            finished.compute_duration.FromNanoseconds(int(compute_s * 1e9))
            yield watermark_pb2.EmbedResponse(finished=finished)

    async def Detect(
        self, request: watermark_pb2.DetectRequest, context: grpc.aio.ServicerContext
    ) -> watermark_pb2.DetectResponse:
        return await self._detect.detect(request)

    async def DetectStream(
        self, request_iterator: AsyncIterator[watermark_pb2.DetectStreamRequest], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[watermark_pb2.DetectStreamResponse]:
        async for response in self._detect.detect_stream(self._pending, request_iterator):
            yield response

    async def GetModelInfo(
        self, request: watermark_pb2.GetModelInfoRequest, context: grpc.aio.ServicerContext
    ) -> watermark_pb2.GetModelInfoResponse:
        info = watermark_pb2.GetModelInfoResponse(
            bundle=identity(self._bundle),
            lookahead_samples=self._embedder.lookahead_samples,
            opening_samples=self._embedder.opening_samples,
            trained=self._bundle.trained,
            version=version(),
        )
        info.max_detect_duration.FromNanoseconds(int(self._settings.max_detect_s * 1e9))
        return info

    # Embed's parts.

    def _stream_encoding(self, form: common_pb2.AudioFormat) -> Encoding:
        rate_hz = self._bundle.sample_rate_hz
        if form.encoding not in ENCODINGS:
            raise InvalidArgument("start.format.encoding", "must be PCM_S16LE or PCM_F32LE")
        if form.HasField("sample_rate_hz") and form.sample_rate_hz != rate_hz:
            raise InvalidArgument("start.format.sample_rate_hz", f"must be {rate_hz}, not {form.sample_rate_hz}")
        if form.HasField("channels") and form.channels != 1:
            raise InvalidArgument("start.format.channels", f"must be 1, not {form.channels}")
        return ENCODINGS[form.encoding]

    def _open(self, opening: watermark_pb2.EmbedStart, discarded: int) -> tuple[EmbedStream, int, int]:
        """A stream, and how many samples before its own were received and marked already. Raises: InvalidArgument."""
        if not opening.HasField("checkpoint"):
            return self._embedder.open(), 0, 0
        given = opening.checkpoint
        try:
            stream = self._embedder.open_at(
                given.first_sample, given.first_marked_sample, given.columns, given.power_sum
            )
        except ValueError as error:
            raise InvalidArgument("start.checkpoint", str(error)) from None
        if discarded < given.first_marked_sample:
            text = (
                f"must be at least the checkpoint's first_marked_sample, {given.first_marked_sample}, not {discarded}"
            )
            raise InvalidArgument("start.discard_samples", text)
        return stream, given.first_sample, given.first_marked_sample

    def _started(self, encoding: common_pb2.AudioEncoding.ValueType, first_sample: int) -> watermark_pb2.EmbedResponse:
        form = common_pb2.AudioFormat(encoding=encoding, sample_rate_hz=self._bundle.sample_rate_hz, channels=1)
        started = watermark_pb2.EmbedStarted(
            format=form,
            lookahead_samples=self._embedder.lookahead_samples,
            key_id=self._key_id,
            first_sample=first_sample,
        )
        return watermark_pb2.EmbedResponse(started=started)

    async def _pieces(
        self, requests: AsyncIterator[watermark_pb2.EmbedRequest], encoding: Encoding
    ) -> AsyncGenerator[np.ndarray | None, None]:
        """The caller's samples in pieces [n], then None.

        Samples too few for the first marked one are joined with those that follow: they are worth no pass.
        """
        most, first = self._bundle.sample_rate_hz * _PIECE_S, self._first_samples
        kept = np.zeros(0, np.float32)
        async for request in requests:
            if request.WhichOneof("event") != "audio":
                raise InvalidArgument("event", "every message after start must be audio")
            try:
                samples = from_bytes(request.audio.data, encoding)
            except ValueError:
                raise InvalidArgument(
                    "audio.data", f"{len(request.audio.data)} bytes is no whole number of samples"
                ) from None
            # NaN when any sample is. Not of the magnitudes: a message of seconds would be written to memory once more.
            low, high = float(samples.min(initial=0.0)), float(samples.max(initial=0.0))
            if not (math.isfinite(low) and math.isfinite(high)):
                raise InvalidArgument("audio.data", "has samples that are NaN or infinite")
            peak = max(-low, high)
            if peak > MAX_PEAK:
                raise InvalidArgument("audio.data", f"float samples must lie in [-1, 1], found {peak:g}")
            if first:
                samples = kept = np.concatenate([kept, samples])
                if len(kept) < first:
                    continue
                first, kept = 0, kept[:0]
            for start in range(0, len(samples), most):
                yield samples[start : start + most]
        if len(kept):  # a clip as short as that
            yield kept
        yield None

    async def _advance(
        self, stream: EmbedStream, samples: np.ndarray | None, deadline_s: float
    ) -> tuple[np.ndarray, float]:
        asked = time.perf_counter()
        load = len(samples) if samples is not None else self._embedder.lookahead_samples
        done = await self._marking.run((stream, samples), load, deadline_s)
        instruments.stage_chunk.record(done.seconds, _EMBED)
        instruments.stage_queue.record(max(0.0, time.perf_counter() - asked - done.seconds), _EMBED)
        return done.result, done.share_s


def _write_checkpoint(into: watermark_pb2.EmbedCheckpoint, checkpoint: Checkpoint) -> None:
    into.first_sample, into.first_marked_sample = checkpoint.first_sample, checkpoint.first_marked_sample
    into.columns, into.power_sum = checkpoint.columns, checkpoint.power_sum
