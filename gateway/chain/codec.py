"""The codec's link: frames in, samples out, through one decoder state however many generations there are."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Sequence

import numpy as np
from csm.codec.v1 import codec_pb2
from csm.common.v1 import common_pb2

from gateway.chain.frame_log import FrameLog
from gateway.chain.queues import CreditWindow
from gateway.chain.resumes import RESUME_PATIENCE_S, ResumeBudget
from gateway.replica import Replica
from gateway.stage_calls import StageCall
from gateway.stages import Stages
from services.runtime.audio import Encoding, from_bytes
from services.runtime.errors import CallError, InternalError, UnavailableError
from services.runtime.sample_encodings import ENCODINGS

CODEC_WINDOW_FRAMES = 128  # in flight in the codec at most
_MAX_FRAMES = 64  # of one message, by the contract


class CodecLink:
    """`feed` and `finish` by one task, `read` by another.

    A codec that takes over decodes the frames before again, as many as the audio depends on (`history_frames` of
    DecodeStarted; all, when it gives none). Frames are kept until `forget` says that they are not needed.
    """

    def __init__(
        self,
        stages: Stages,
        *,
        resumes: ResumeBudget,
        timeout: Callable[[], float],
        on_output: Callable[[str], None] = lambda stage: None,
        buffered_s: Callable[[], float] = lambda: 0.0,
    ):
        """timeout: seconds left for the request. on_output: called with `codec` when there are samples.

        buffered_s: seconds of audio that the listener has still to play.
        """
        self._replicas, self._resumes, self._timeout = stages.codec, resumes, timeout
        self._on_output, self._buffered_s = on_output, buffered_s
        self._log = FrameLog()
        self._fed_all = False
        self._fed = asyncio.Event()  # set whenever the sender should look again
        self._ahead = CreditWindow(CODEC_WINDOW_FRAMES)  # frames that were fed and not read for the first time
        self._credited = 0
        self._history: int | None = None  # frames that a frame's audio depends on; None: all before it
        # Of the stream that runs now. It begins with frame _first; audio that was read before is discarded there.
        self._call: StageCall | None = None
        self._replica: Replica | None = None
        self._sender: asyncio.Task[None] | None = None
        self._window = CreditWindow(CODEC_WINDOW_FRAMES)
        self._unsent: deque[Sequence[common_pb2.Frame]] = deque()
        self._first = 0
        self._discarded = 0  # its first frames, whose audio does not come
        self._decoded = 0  # samples up to where it is, those of all frames before included
        self._delivered = 0  # samples that `read` has given, of whichever stream
        self._encoding: Encoding = "f32le"
        self.samples_per_frame = 0  # known once it is open

    @property
    def frames(self) -> int:
        """Frames fed so far."""
        return len(self._log)

    @property
    def samples(self) -> int:
        """Samples of the frames fed so far."""
        return len(self._log) * self.samples_per_frame

    async def open(self, patience_s: float = 0.0) -> None:
        """Wait until a codec has a slot for us. patience_s: try full ones for at least so long. Raises: CallError."""
        await self._open(patience_s=patience_s)

    async def feed(self, frames: Sequence[common_pb2.Frame]) -> None:
        """Append `frames`; waits while the codec is a window behind."""
        await self._ahead.acquire(len(frames))
        self._log.extend(frames)
        self._unsent.append(frames)
        self._fed.set()

    def finish(self) -> None:
        """There are no more frames."""
        self._fed_all = True
        self._fed.set()

    async def read(self) -> np.ndarray | None:
        """The next samples, float32 [T]; None at the end, when every frame fed was decoded. Raises: CallError."""
        while self._call is not None and self._replica is not None:
            try:
                response = await self._call.read()
            except CallError as error:
                await self._resumes.resume("codec", self._replica, error, self._reopen)
                continue
            match response and response.WhichOneof("event"):
                case "audio":
                    samples = from_bytes(response.audio.data, self._encoding)
                    if len(new := self._count(samples)):
                        self._on_output("codec")
                        return new
                case "finished":
                    if not self._fed_all or self._decoded != self.samples:
                        raise InternalError(f"codec: gave {self._decoded} of {self.samples} samples")
                    await self._call.end()
                    return None
                case _:
                    raise InternalError("codec: the stream ended without finished")
        raise InternalError("codec: read before open")

    async def rewind(self, sample: int) -> None:
        """Let `read` begin again with `sample`, over a new stream. Raises: CallError."""
        await self.close()
        self._delivered = sample
        await self._open(patience_s=RESUME_PATIENCE_S)

    def forget(self, sample: int) -> None:
        """No `rewind` will go back before `sample`, which was read."""
        if self._history is not None:
            self._log.forget(sample // self.samples_per_frame - self._history)

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
        self._on_output, self._buffered_s = lambda stage: None, lambda: 0.0

    def _count(self, samples: np.ndarray) -> np.ndarray:
        """Those of `samples` that `read` has not given yet."""
        begin, self._decoded = self._decoded, self._decoded + len(samples)
        frames = self._decoded // self.samples_per_frame
        self._window.release(frames - begin // self.samples_per_frame)
        if frames > self._credited:
            self._ahead.release(frames - self._credited)
            self._credited = frames
        new = samples[max(0, self._delivered - begin) :]
        self._delivered = max(self._delivered, self._decoded)
        return new

    async def _open(self, avoid: Collection[Replica] = (), patience_s: float = 0.0) -> None:
        def start(replica: Replica) -> StageCall:
            return replica.call("Decode", timeout=self._timeout())

        delivered = self._delivered // self.samples_per_frame if self._delivered else 0  # frames
        first = self._log.first if self._history is None else max(self._log.first, delivered - self._history)
        discard = delivered - first

        async def admit(call: StageCall) -> codec_pb2.DecodeStarted:
            opening = codec_pb2.DecodeStart(discard_frames=discard or None)
            if self.frames:  # a replay
                opening.buffered_duration.FromNanoseconds(int(self._buffered_s() * 1e9))
            await call.write(codec_pb2.DecodeRequest(start=opening))
            started: codec_pb2.DecodeStarted = await call.first("started")
            if first and started.history_frames > discard:
                raise UnavailableError("codec: this replica needs more frames than are kept")
            return started

        self._replica, call, started = await self._replicas.stream(start, admit, avoid=avoid, patience_s=patience_s)
        self._call = call
        if started.format.encoding not in ENCODINGS or started.samples_per_frame < 1 or started.history_frames < 0:
            raise InternalError("codec: unknown sample encoding, frame length or history")
        self._encoding, self.samples_per_frame = ENCODINGS[started.format.encoding], started.samples_per_frame
        self._history = started.history_frames or None
        self._window, self._first, self._discarded = CreditWindow(CODEC_WINDOW_FRAMES), first, discard
        self._decoded = delivered * self.samples_per_frame
        call.is_owed, call.is_resumable = lambda: self._window.in_flight > 0, self._resumes.is_left
        self._unsent = deque(self._log.chunks(first, _MAX_FRAMES))
        self._sender = asyncio.get_running_loop().create_task(self._send(call))

    async def _reopen(self) -> None:
        failed = self._replica
        await self.close()
        await self._open({failed} if failed is not None else (), RESUME_PATIENCE_S)

    async def _send(self, call: StageCall) -> None:
        """Whatever goes wrong with the call, its reader learns it too."""
        sent = 0
        try:
            while True:
                if self._unsent:
                    frames = self._unsent.popleft()
                    discarded = min(len(frames), max(0, self._discarded - sent))
                    await self._window.acquire(len(frames) - discarded)
                    sent += len(frames)
                    # A dict: a message that is put into another one is copied once more.
                    await call.write(codec_pb2.DecodeRequest(frames={"frames": frames}))  # type: ignore[arg-type]
                elif self._fed_all:
                    await call.done_writing()
                    return
                else:
                    self._fed.clear()
                    await self._fed.wait()
        except CallError:
            return
