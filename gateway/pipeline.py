"""The chain for one utterance: prompt → frames → audio → marked audio, all three streams overlapping.

    backbone ─frames→ codec ─audio→ watermark ─marked audio→ outlet → the caller

Three pumps, one task each, move data between the streams; windows bound what is in flight in a
stage, the outlet bounds what waits for the caller. The first thing that goes wrong in any pump
reaches the caller through the outlet at once. Whatever ends the utterance, `finally` cancels every
upstream call: a stage frees its slot because its stream ended, never because somebody told it.

Only the watermark's output enters the outlet, so unmarked audio has no way out.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
from csm.backbone.v1 import backbone_pb2
from csm.codec.v1 import codec_pb2
from csm.common.v1 import common_pb2
from csm.speech.v1 import speech_pb2
from csm.watermark.v1 import watermark_pb2

from gateway.outlet import Outlet, Window
from gateway.prompt import build_prompt
from gateway.stage_calls import end, place, read, send
from gateway.stages import Stages
from gateway.timeline import Timeline
from services.runtime.audio import from_bytes, to_bytes
from services.runtime.errors import CallError, InternalError, UnavailableError
from services.runtime.sample_encodings import ENCODINGS

# In flight inside a stage at most. The watermark's is on top of its look-ahead, which it holds by nature.
CODEC_WINDOW_FRAMES = 128
WATERMARK_WINDOW_FRAMES = 128
OUTLET_CHUNKS = 16


@dataclass(frozen=True)
class Admitted:
    """First event: every stage has taken the utterance in."""

    seed: int
    prompt_tokens: int


@dataclass(frozen=True)
class Marked:
    """Marked audio, float32 [T] at the bundle's rate."""

    samples: np.ndarray


class Synthesis:
    """One utterance on its way through the chain. `events` may be iterated once."""

    def __init__(
        self,
        stages: Stages,
        utterance: speech_pb2.Utterance,
        *,
        max_frames: int | None,
        ramp_frames: list[int],
        resumes: int,
        timeout: Callable[[], float],
    ):
        """timeout: seconds left for the request, asked at each upstream call."""
        self._stages, self._utterance, self._timeout = stages, utterance, timeout
        self._request = backbone_pb2.GenerateRequest(
            sampling=utterance.sampling,
            max_frames=max_frames,
            chunk_policy=backbone_pb2.ChunkPolicy(
                ramp_frames=ramp_frames, held_back_frames=min(stages.held_back_frames, 64)
            ),
        )
        self._resumes = resumes
        self._calls: list[grpc.aio.Call] = []
        self._outlet: Outlet[np.ndarray] = Outlet(OUTLET_CHUNKS)
        self.timeline = Timeline()
        self.frames = 0
        self._all_to_codec = self._all_to_watermark = False
        self.finish_reason = common_pb2.FINISH_REASON_UNSPECIFIED

    async def events(self) -> AsyncIterator[Admitted | Marked]:
        """Admitted, then Marked until the speech ends. Close it early and everything upstream is cancelled.

        Raises: CallError.
        """
        tasks: list[asyncio.Task[Any]] = []
        try:
            self._request.prompt.extend(await build_prompt(self._stages, self._utterance, self._timeout))
            self.timeline.output("tokenizer")
            generation, started = await place(self._open_backbone)
            self._request.sampling.seed = started.seed
            # When one fails `finally` stops the other too: it could else open a call that nobody ends.
            tasks = [asyncio.ensure_future(place(one)) for one in (self._open_codec, self._open_watermark)]
            codec, watermark = await asyncio.gather(*tasks)
            self._codec_window = Window(CODEC_WINDOW_FRAMES)
            self._watermark_window = Window(self._lookahead_samples + WATERMARK_WINDOW_FRAMES * self._samples_per_frame)
            yield Admitted(started.seed, started.prompt_tokens)
            tasks = [
                self._pump(self._frames_to_codec(generation, codec)),
                self._pump(self._audio_to_watermark(codec, watermark)),
                self._pump(self._marked_to_outlet(watermark)),
            ]
            while (samples := await self._outlet.get()) is not None:
                yield Marked(samples)
        finally:
            self.timeline.close()
            for task in tasks:
                task.cancel()
            for call in self._calls:
                call.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for call in self._calls:
                if hasattr(call, "done_writing"):
                    # A call that the stage ended keeps the task that feeds it until its feed ends.
                    with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError, asyncio.CancelledError):
                        await call.done_writing()

    def _pump(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        async def run() -> None:
            try:
                await work
            except asyncio.CancelledError:
                # Ours, when the utterance is over; otherwise gRPC cancelled the call under us.
                self._outlet.fail(UnavailableError("a stage's stream was broken off"))
                raise
            except Exception as error:
                self._outlet.fail(error)

        return asyncio.get_running_loop().create_task(run())

    # Opening the streams: each stage answers `started` when it has a place, or refuses.

    async def _open_backbone(self) -> tuple[grpc.aio.UnaryStreamCall, backbone_pb2.GenerateStarted]:
        call = self._stages.backbone.Generate(self._request, timeout=self._timeout())
        self._calls.append(call)
        return call, (await self._first("backbone", call, "started")).started

    async def _open_codec(self) -> grpc.aio.StreamStreamCall:
        call = self._stages.codec.Decode(timeout=self._timeout())
        self._calls.append(call)
        await send("codec", call, call.write(codec_pb2.DecodeRequest(start=codec_pb2.DecodeStart())))
        started = (await self._first("codec", call, "started")).started
        self._pcm_format = started.format
        self._samples_per_frame = started.samples_per_frame
        return call

    async def _open_watermark(self) -> grpc.aio.StreamStreamCall:
        call = self._stages.watermark.Embed(timeout=self._timeout())
        self._calls.append(call)
        pcm = common_pb2.AudioFormat(
            encoding=common_pb2.AUDIO_ENCODING_PCM_F32LE,
            sample_rate_hz=self._stages.identity.sample_rate_hz,
            channels=1,
        )
        start = watermark_pb2.EmbedRequest(start=watermark_pb2.EmbedStart(format=pcm))
        await send("watermark", call, call.write(start))
        started = (await self._first("watermark", call, "started")).started
        if started.format != pcm:
            raise InternalError("watermark: answers in another format than it was asked for")
        self._lookahead_samples = started.lookahead_samples
        return call

    async def _first(self, stage: str, call: Any, event: str) -> Any:
        response = await read(stage, call, self._rename if stage == "backbone" else None)
        if response is None or response.WhichOneof("event") != event:
            raise InternalError(f"{stage}: the stream did not begin with {event}")
        return response

    @staticmethod
    def _rename(field: str) -> str:
        """The backbone's field paths as the caller knows them."""
        if field.startswith("sampling"):
            return f"utterance.{field}"
        if field.startswith("prompt"):
            return "utterance"
        if field.startswith("max_frames"):
            return "utterance.max_audio_ms"
        return field

    # The pumps.

    async def _frames_to_codec(self, generation: grpc.aio.UnaryStreamCall, codec: grpc.aio.StreamStreamCall) -> None:
        while True:
            try:
                response = await read("backbone", generation, self._rename)
            except CallError as error:
                if error.code is not grpc.StatusCode.UNAVAILABLE or self._resumes == 0:
                    raise
                self._resumes -= 1
                generation = await self._resume(error)
                continue
            match response and response.WhichOneof("event"):
                case "chunk":
                    frames = response.chunk.frames
                    self.timeline.output("backbone")
                    self.frames += len(frames)
                    if self._resumes:
                        self._request.generated.extend(frames)
                    await self._codec_window.enter(len(frames))
                    # A dict here and below: a message that is put into another one is copied once more.
                    request = codec_pb2.DecodeRequest(frames={"frames": frames})
                    await send("codec", codec, codec.write(request))
                case "finished":
                    self.finish_reason = response.finished.finish_reason
                    await end("backbone", generation)
                    self._all_to_codec = True
                    await send("codec", codec, codec.done_writing())
                    return
                case _:
                    raise InternalError("backbone: the stream ended without finished")

    async def _resume(self, broken: CallError) -> grpc.aio.UnaryStreamCall:
        """Take the utterance up on another replica: same prompt, same seed, the frames made so far.

        Raises: `broken` when no replica takes it.
        """
        try:
            return (await self._open_backbone())[0]
        except CallError:
            raise broken from None

    async def _audio_to_watermark(self, codec: grpc.aio.StreamStreamCall, watermark: grpc.aio.StreamStreamCall) -> None:
        if self._pcm_format.encoding not in ENCODINGS:
            raise InternalError("codec: unknown sample encoding")
        encoding = ENCODINGS[self._pcm_format.encoding]
        while True:
            response = await read("codec", codec)
            match response and response.WhichOneof("event"):
                case "audio":
                    self.timeline.output("codec")
                    data = response.audio.data
                    if encoding != "f32le":
                        data = to_bytes(from_bytes(data, encoding), "f32le")
                    samples = len(data) // 4
                    self._codec_window.leave(samples // self._samples_per_frame)
                    await self._watermark_window.enter(samples)
                    request = watermark_pb2.EmbedRequest(audio={"data": data})
                    await send("watermark", watermark, watermark.write(request))
                case "finished":
                    if not self._all_to_codec or response.finished.frames != self.frames:
                        raise InternalError(f"codec: decoded {response.finished.frames} of {self.frames} frames")
                    await end("codec", codec)
                    self._all_to_watermark = True
                    await send("watermark", watermark, watermark.done_writing())
                    return
                case _:
                    raise InternalError("codec: the stream ended without finished")

    async def _marked_to_outlet(self, watermark: grpc.aio.StreamStreamCall) -> None:
        total = 0
        while True:
            response = await read("watermark", watermark)
            match response and response.WhichOneof("event"):
                case "audio":
                    self.timeline.output("watermark")
                    samples = from_bytes(response.audio.data, "f32le")
                    total += len(samples)
                    await self._outlet.put(samples)
                    self._watermark_window.leave(len(samples))
                case "finished":
                    expected = self.frames * self._samples_per_frame
                    if not self._all_to_watermark or total != expected:
                        raise InternalError(f"watermark: gave {total} of {expected} samples")
                    await end("watermark", watermark)
                    self._outlet.close()
                    return
                case _:
                    raise InternalError("watermark: the stream ended without finished")
