"""The watermark's link: the codec's samples in, marked samples out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection

import numpy as np
from csm.common.v1 import common_pb2
from csm.watermark.v1 import watermark_pb2

from gateway.chain.codec import CodecLink
from gateway.chain.pauses import PausedAudio
from gateway.chain.queues import CreditWindow
from gateway.chain.resumes import RESUME_PATIENCE_S, ResumeBudget
from gateway.replica import Replica
from gateway.stage_calls import StageCall
from gateway.stages import Stages
from services.runtime.audio import from_bytes, to_bytes
from services.runtime.errors import CallError, InternalError, UnavailableError

Tap = Callable[[np.ndarray, int], None]

WATERMARK_WINDOW_FRAMES = 128  # in flight at most, on top of the look-ahead, which the stage keeps by nature


class WatermarkLink:
    """Reads the codec's link in a task of its own.

    A stream that dies is marked again from the last checkpoint that the watermark gave, or else from the first sample.
    Its samples are decoded again, since keeping them would take 96 kB for each second of every stream.
    """

    def __init__(
        self,
        stages: Stages,
        codec: CodecLink | PausedAudio,
        *,
        resumes: ResumeBudget,
        timeout: Callable[[], float],
        buffered_s: Callable[[], float] = lambda: 0.0,
        tap: Tap | None = None,
        on_key: Callable[[str], None] = lambda key_id: None,
    ):
        """timeout: seconds left for the request. buffered_s: seconds of audio that the listener has still to play.

        tap: is given each piece of unmarked audio, and where it begins. on_key: called with the id of a key that marks.
        """
        self._replicas, self._codec, self._resumes, self._timeout = stages.watermark, codec, resumes, timeout
        self._buffered_s, self._tap, self._on_key = buffered_s, tap, on_key
        self._pcm = common_pb2.AudioFormat(
            encoding=common_pb2.AUDIO_ENCODING_PCM_F32LE,
            sample_rate_hz=stages.identity.sample_rate_hz,
            channels=1,
        )
        self._checkpoint: watermark_pb2.EmbedCheckpoint | None = None  # from which all that was not read can be marked
        self._later: watermark_pb2.EmbedCheckpoint | None = None  # the same once more has been read
        # Of the stream that runs now. Samples that were read before are discarded there.
        self._call: StageCall | None = None
        self._replica: Replica | None = None
        self._sender: asyncio.Task[None] | None = None
        self._source_error: Exception | None = None  # why the codec's link gave no more
        self._sent_all = False
        self._window = CreditWindow(0)
        self._first = 0  # sample that it begins with
        self._discarded = 0  # samples before this one do not come
        self._marked = 0  # samples up to where it is, those of all audio before included
        self._delivered = 0  # samples that `read` has given, of whichever stream
        self._tapped = 0  # samples that the tap was given

    async def open(self, patience_s: float = 0.0) -> None:
        """Wait until a watermark has room for us. patience_s: as the codec's. Raises: CallError."""
        await self._open(patience_s=patience_s)

    def start(self) -> None:
        """Begin to take the codec's samples; both links must be open."""
        if self._call is not None:
            self._sender = asyncio.get_running_loop().create_task(self._send(self._call))

    async def read(self) -> np.ndarray | None:
        """The next marked samples, float32 [T]; None at the end, when every sample was marked. Raises: CallError."""
        while self._call is not None and self._replica is not None:
            try:
                response = await self._call.read()
            except CallError as error:
                if self._source_error is not None:
                    raise self._source_error from None
                await self._resumes.resume("watermark", self._replica, error, self._reopen)
                continue
            match response and response.WhichOneof("event"):
                case "audio":
                    samples = from_bytes(response.audio.data, "f32le")
                    if response.audio.HasField("checkpoint") and self._later is None:
                        self._later = watermark_pb2.EmbedCheckpoint()  # a copy, without the audio
                        self._later.CopyFrom(response.audio.checkpoint)
                    if len(new := self._count(samples)):
                        return new
                case "finished":
                    expected = self._codec.samples
                    if not self._sent_all or self._marked != expected:
                        raise InternalError(f"watermark: gave {self._marked} of {expected} samples")
                    await self._call.end()
                    return None
                case _:
                    raise InternalError("watermark: the stream ended without finished")
        raise InternalError("watermark: read before open")

    def cancel(self) -> None:
        """End the stream, if one runs: its slot is free."""
        if self._call is not None:
            self._call.cancel()
        if self._sender is not None:
            self._sender.cancel()

    async def close(self) -> None:
        """Cancel, and wait until nothing of it is left."""
        self.cancel()
        (call, self._call), (sender, self._sender) = (self._call, None), (self._sender, None)
        if sender is not None:
            await asyncio.gather(sender, return_exceptions=True)
        if call is not None:
            await call.close()

    def release(self) -> None:
        """After `close`, for good: let go of who is called."""
        self._tap, self._on_key, self._buffered_s = None, lambda key_id: None, lambda: 0.0

    def _count(self, samples: np.ndarray) -> np.ndarray:
        """Those of `samples` that `read` has not given yet."""
        begin, self._marked = self._marked, self._marked + len(samples)
        self._window.release(len(samples))
        new = samples[max(0, self._delivered - begin) :]
        self._delivered = max(self._delivered, self._marked)
        if self._later is not None and self._later.first_marked_sample <= self._delivered:
            self._checkpoint, self._later = self._later, None
            self._codec.forget(self._checkpoint.first_sample)
        return new

    async def _open(self, avoid: Collection[Replica] = (), patience_s: float = 0.0) -> None:
        def start(replica: Replica) -> StageCall:
            return replica.call("Embed", timeout=self._timeout())

        checkpoint, discard = self._checkpoint, self._delivered
        first = 0 if checkpoint is None else checkpoint.first_sample

        async def admit(call: StageCall) -> watermark_pb2.EmbedStarted:
            opening = watermark_pb2.EmbedStart(format=self._pcm, discard_samples=discard or None, checkpoint=checkpoint)
            if discard:  # a replay
                opening.buffered_duration.FromNanoseconds(int(self._buffered_s() * 1e9))
            await call.write(watermark_pb2.EmbedRequest(start=opening))
            started: watermark_pb2.EmbedStarted = await call.first("started")
            if started.first_sample != first:
                raise UnavailableError("watermark: this replica knows no checkpoints")
            return started

        self._replica, self._call, started = await self._replicas.stream(
            start, admit, avoid=avoid, patience_s=patience_s
        )
        if started.format != self._pcm:
            raise InternalError("watermark: answers in another format than it was asked for")
        self._lookahead = started.lookahead_samples
        self._on_key(started.key_id)
        enough = started.lookahead_samples + self._pcm.sample_rate_hz // 2
        self._call.is_owed, self._call.is_resumable = lambda: self._window.in_flight > enough, self._resumes.is_left
        self._first, self._marked, self._discarded = first, discard, discard
        self._sent_all = False

    async def _reopen(self) -> None:
        failed = self._replica
        await self.close()  # the sender too: then nothing reads the codec's link
        await self._open({failed} if failed is not None else (), RESUME_PATIENCE_S)
        await self._codec.rewind(self._first)
        self.start()

    async def _send(self, call: StageCall) -> None:
        self._window = CreditWindow(self._lookahead + WATERMARK_WINDOW_FRAMES * self._codec.samples_per_frame)
        sent = self._first
        try:
            while (samples := await self._codec.read()) is not None:
                discarded = min(len(samples), max(0, self._discarded - sent))
                sent += len(samples)
                if self._tap is not None and sent > self._tapped:
                    begin = max(self._tapped, sent - len(samples))
                    self._tap(samples[begin - sent :], begin)
                    self._tapped = sent
                await self._window.acquire(len(samples) - discarded)
                data = to_bytes(samples, "f32le")
                if not await _sent(call.write(watermark_pb2.EmbedRequest(audio={"data": data}))):  # type: ignore[arg-type]
                    return
            self._sent_all = True
            await _sent(call.done_writing())
        except Exception as error:
            self._source_error = error
            call.abandon(f"{error}")


async def _sent(sending: Awaitable[None]) -> bool:
    """Whether it succeeds; otherwise the reader of the call learns why, too."""
    try:
        await sending
    except CallError:
        return False
    return True
