"""The codec's gRPC service on top of the worker. Imports no torch."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import grpc
from csm.codec.v1 import codec_pb2, codec_pb2_grpc
from csm.common.v1 import common_pb2
from opentelemetry import trace

from models.bundle import Bundle
from services.codec.frames import MAX_FRAMES, FramesError, codes_of
from services.codec.worker import DecodeStream, DecodeWorker, WorkerError
from services.runtime import instruments
from services.runtime.admission import Admission, PendingStreams
from services.runtime.audio import to_bytes
from services.runtime.errors import InvalidArgument, UnavailableError
from services.runtime.identity import identity
from services.runtime.playback_deadline import PlaybackDeadline
from services.runtime.replay import Discard, buffered_seconds, check_discard
from services.runtime.request_reader import limit_idle
from services.runtime.version import version

_DECODE = {"stage": "codec", "rpc.method": "csm.codec.v1.CodecService/Decode"}


class CodecServicer(codec_pb2_grpc.CodecServiceServicer):
    """Each Decode call is one stream of the worker."""

    def __init__(self, bundle: Bundle, worker: DecodeWorker, slots: int, history_frames: int):
        """history_frames: frames before a frame that its audio depends on."""
        self._bundle, self._worker, self._history_frames = bundle, worker, history_frames
        self._slots = Admission("codec slots", slots)
        self._pending = PendingStreams("codec streams", 2 * slots + 64)
        instruments.observe(worker, "csm.codec.slots.active", lambda worker: worker.active)
        instruments.observe(worker, "csm.codec.slots.capacity", lambda _: slots)

    async def Decode(
        self, request_iterator: AsyncIterator[codec_pb2.DecodeRequest], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[codec_pb2.DecodeResponse]:
        began = time.perf_counter()
        first = await self._pending.first_message(request_iterator)
        if first is None or first.WhichOneof("event") != "start":
            raise InvalidArgument("event", "the first message must be start")
        start = first.start
        discard_frames = check_discard("start.discard_frames", start.discard_frames)
        buffered_s = buffered_seconds(start.buffered_duration)
        with self._slots.enter():
            stream, feeder = self._open(discard_frames, buffered_s), None
            try:
                yield codec_pb2.DecodeResponse(
                    started=codec_pb2.DecodeStarted(
                        format=self._format(),
                        samples_per_frame=self._samples_per_frame,
                        history_frames=self._history_frames,
                    )
                )
                playback = PlaybackDeadline(time.monotonic() + buffered_s)
                limit_idle(request_iterator, playback.deadline_s)
                feeder = asyncio.ensure_future(self._feed(request_iterator, stream))
                discard, frames, sent, compute_s = Discard(discard_frames * self._samples_per_frame), 0, 0, 0.0
                async for audio in stream:
                    instruments.stage_chunk.record(audio.compute_s, _DECODE)
                    instruments.stage_queue.record(audio.wait_s, _DECODE)
                    frames += len(audio.samples) // self._samples_per_frame
                    compute_s += audio.compute_s
                    samples = discard.trim(audio.samples)
                    if not len(samples):
                        continue
                    if not sent:
                        instruments.stage_first_output.record(time.perf_counter() - began, _DECODE)
                        trace.get_current_span().add_event("first_frame")
                    sent += len(samples)
                    playback.audio_sent(len(samples) / self._bundle.sample_rate_hz, time.monotonic())
                    limit_idle(request_iterator, playback.deadline_s)
                    # A dict: a message that is put into another one is copied once more.
                    yield codec_pb2.DecodeResponse(audio={"data": to_bytes(samples, "f32le")})  # type: ignore[arg-type]
                if discard.missing:
                    raise InvalidArgument("start.discard_frames", f"is {discard_frames}, but only {frames} frames came")
                trace.get_current_span().set_attributes({"csm.frames": frames, "csm.discarded_frames": discard_frames})
                finished = codec_pb2.DecodeFinished(frames=frames, samples=sent)
                finished.compute_duration.FromNanoseconds(int(compute_s * 1e9))
                yield codec_pb2.DecodeResponse(finished=finished)
            except WorkerError as error:
                raise UnavailableError(str(error)) from None
            finally:
                stream.close()
                if feeder is not None:
                    feeder.cancel()
                    await asyncio.gather(feeder, return_exceptions=True)

    async def GetModelInfo(
        self, request: codec_pb2.GetModelInfoRequest, context: grpc.aio.ServicerContext
    ) -> codec_pb2.GetModelInfoResponse:
        return codec_pb2.GetModelInfoResponse(
            bundle=identity(self._bundle),
            samples_per_frame=self._samples_per_frame,
            slots_capacity=self._slots.limit,
            slots_active=self._worker.active,
            version=version(),
        )

    def _open(self, discard_frames: int, buffered_s: float) -> DecodeStream:
        try:
            return self._worker.open(discard_frames=discard_frames, buffered_s=buffered_s)
        except WorkerError as error:
            raise UnavailableError(str(error)) from None

    async def _feed(self, requests: AsyncIterator[codec_pb2.DecodeRequest], stream: DecodeStream) -> None:
        """Feed the caller's frames to the worker. An error ends the stream's audio."""
        try:
            async for request in requests:
                if request.WhichOneof("event") != "frames":
                    raise InvalidArgument("event", "every message after start must be frames")
                # Before any list is built: an empty frame is two bytes, so a message can hold millions.
                if len(request.frames.frames) > MAX_FRAMES:
                    count = len(request.frames.frames)
                    raise InvalidArgument("frames.frames", f"must hold 1 to {MAX_FRAMES} frames, not {count}")
                frames = [frame.codes for frame in request.frames.frames]
                try:
                    codes = codes_of(frames, codebooks=self._bundle.codebooks, bins=self._bundle.codec_bins)
                except FramesError as error:
                    raise InvalidArgument(f"frames.{error.field}", error.description) from None
                await stream.feed(codes)
            stream.finish()
        except Exception as error:
            stream.fail(error)

    @property
    def _samples_per_frame(self) -> int:
        return self._bundle.samples_per_frame

    def _format(self) -> common_pb2.AudioFormat:
        return common_pb2.AudioFormat(
            encoding=common_pb2.AUDIO_ENCODING_PCM_F32LE,
            sample_rate_hz=self._bundle.sample_rate_hz,
            channels=1,
        )
