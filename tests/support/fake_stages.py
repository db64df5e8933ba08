"""Stages that keep the contracts but hold no model, so that a test decides what they do and when.

Frame i of an utterance has codes [i, i, …]; its audio is 1920 samples of the value i / 1024, and a
marked sample lies exactly 0.5 higher: a test can tell marked from unmarked and count every frame.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import contextmanager

import numpy as np
from csm.backbone.v1 import backbone_pb2, backbone_pb2_grpc
from csm.codec.v1 import codec_pb2, codec_pb2_grpc
from csm.common.v1 import common_pb2
from csm.tokenizer.v1 import tokenizer_pb2, tokenizer_pb2_grpc
from csm.watermark.v1 import watermark_pb2, watermark_pb2_grpc

from models.bundle import Bundle
from services.runtime.errors import NOTHING_SPEAKABLE, CallError, InvalidArgument

SAMPLES_PER_FRAME = 1920
LOOKAHEAD = 700
HISTORY_FRAMES = 6  # that the codec's audio depends on
CHECKPOINT_SAMPLES = 3000  # that a checkpoint of the watermark lies before, and as many behind, what it has marked
MARK = 0.5


class StageProbe:
    """What the fakes share with the test: orders to the stages, and what happened in them."""

    def __init__(self, bundle: Bundle):
        self.identity = common_pb2.BundleIdentity(
            bundle_id=bundle.id,
            codebooks=bundle.codebooks,
            frame_rate_hz=bundle.frame_rate_hz,
            sample_rate_hz=bundle.sample_rate_hz,
        )
        self.frames = 10  # frames an utterance has
        self.gate: int | None = None  # frames that may be made for now
        self.refuse: dict[str, CallError] = {}  # stage → how it answers
        self.cap = False  # whether the backbone keeps to max_frames
        self.break_at: int | None = None  # the backbone goes away before this frame, once
        self.stall: set[str] = set()  # stages that never answer
        self.silent: set[str] = set()  # stages that take all they are sent and give nothing back
        self.taken: Counter[str] = Counter()  # frames that came to a stage
        self.opening_samples = 0  # that the watermark gives before it has the look-ahead
        self.lose_samples = 0  # samples the watermark drops
        self.finish_early = False  # the watermark says finished after its first audio
        self.encoding_at_once = 0  # most EncodeAudio calls that were inside together
        self.active: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.deadlines: dict[str, float | None] = {}
        self.generated = 0
        self.requests: list[backbone_pb2.GenerateRequest] = []
        self._changed = asyncio.Event()

    @contextmanager
    def call(self, stage: str, context):
        self.calls[stage] += 1
        self.active[stage] += 1
        self.deadlines[stage] = context.time_remaining()
        self.touch()
        try:
            if stage not in ("codec", "watermark"):
                self.admit(stage)
            yield
        finally:
            self.active[stage] -= 1
            self.touch()

    def admit(self, stage: str) -> None:
        """Refuse if told so. Stages with a request stream do it when they have read its first message:
        a write that meets the end of its call loses the call's status in gRPC."""
        if stage in self.refuse:
            raise self.refuse[stage]

    def touch(self) -> None:
        self._changed.set()

    async def until(self, condition, within_s: float = 5.0) -> None:
        """Wait until `condition()`; raises TimeoutError."""
        async with asyncio.timeout(within_s):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def until_quiet(self) -> int:
        """Wait until no more frames are made; how many were."""
        last = -1
        while last != self.generated:
            last = self.generated
            with_timeout = asyncio.wait_for(self.until(lambda seen=last: self.generated != seen, 60), 0.3)
            try:
                await with_timeout
            except TimeoutError:
                break
        return self.generated


class FakeTokenizer(tokenizer_pb2_grpc.TokenizerServiceServicer):
    def __init__(self, probe: StageProbe):
        self.probe = probe

    async def Tokenize(self, request, context):
        with self.probe.call("tokenizer", context):
            if "tokenizer" in self.probe.stall:
                await asyncio.Event().wait()
            for index, segment in enumerate(request.segments):
                if not any(map(str.isalnum, segment.text)):
                    raise InvalidArgument(f"segments[{index}].text", "has no words", reason=NOTHING_SPEAKABLE)
            return tokenizer_pb2.TokenizeResponse(
                segments=[
                    tokenizer_pb2.TokenizedSegment(ids=[1, segment.speaker + 10, *segment.text.encode(), 2])
                    for segment in request.segments
                ]
            )

    async def EncodeAudio(self, request, context):
        with self.probe.call("encoder", context):
            self.probe.encoding_at_once = max(self.probe.encoding_at_once, self.probe.active["encoder"])
            if "encoder" in self.probe.stall:
                await asyncio.Event().wait()
            await asyncio.sleep(0.02)  # long enough for the others to come in
            frames = [common_pb2.Frame(codes=[7] * self.probe.identity.codebooks)] * 3
            return tokenizer_pb2.EncodeAudioResponse(frames=frames)

    async def GetModelInfo(self, request, context):
        return tokenizer_pb2.GetModelInfoResponse(bundle=self.probe.identity)


class FakeBackbone(backbone_pb2_grpc.BackboneServiceServicer):
    def __init__(self, probe: StageProbe):
        self.probe = probe

    async def Generate(self, request, context):
        probe = self.probe
        with probe.call("backbone", context):
            probe.requests.append(request)
            seed = request.sampling.seed if request.sampling.HasField("seed") else 77
            rows = sum(len(part.text.ids) + len(part.audio.frames) for part in request.prompt)
            yield backbone_pb2.GenerateResponse(started=backbone_pb2.GenerateStarted(seed=seed, prompt_tokens=rows))
            end = min(probe.frames, request.max_frames) if probe.cap else probe.frames
            for index in range(len(request.generated), end):
                if probe.gate is not None:
                    await probe.until(lambda index=index: probe.gate is None or index < probe.gate, 60)
                if probe.break_at == index:
                    probe.break_at = None
                    from services.runtime.errors import UnavailableError

                    raise UnavailableError("the GPU fell off the bus")
                probe.generated += 1
                probe.touch()
                frame = common_pb2.Frame(codes=[index] * probe.identity.codebooks)
                yield backbone_pb2.GenerateResponse(
                    chunk=backbone_pb2.FrameChunk(first_frame_index=index, frames=[frame])
                )
            yield backbone_pb2.GenerateResponse(
                finished=backbone_pb2.GenerateFinished(
                    finish_reason=common_pb2.FINISH_REASON_END_OF_SPEECH
                    if end == probe.frames
                    else common_pb2.FINISH_REASON_MAX_LENGTH,
                    frames=end,
                )
            )

    async def GetModelInfo(self, request, context):
        return backbone_pb2.GetModelInfoResponse(bundle=self.probe.identity, max_seq_len=777, max_frames=1125)


class FakeCodec(codec_pb2_grpc.CodecServiceServicer):
    def __init__(self, probe: StageProbe):
        self.probe = probe

    async def Decode(self, request_iterator, context):
        with self.probe.call("codec", context):
            pcm = common_pb2.AudioFormat(encoding=common_pb2.AUDIO_ENCODING_PCM_F32LE, sample_rate_hz=24000, channels=1)
            frames = discard = unknown = 0
            async for request in request_iterator:
                if request.HasField("start"):
                    self.probe.admit("codec")
                    discard = request.start.discard_frames
                    yield codec_pb2.DecodeResponse(
                        started=codec_pb2.DecodeStarted(
                            format=pcm, samples_per_frame=SAMPLES_PER_FRAME, history_frames=HISTORY_FRAMES
                        )
                    )
                    continue
                if not frames and request.frames.frames[0].codes[0]:  # begins in the middle
                    unknown = HISTORY_FRAMES
                values = [frame.codes[0] / 1024 for frame in request.frames.frames]
                values[: max(0, unknown - frames)] = [-1.0] * min(len(values), max(0, unknown - frames))
                values, count = values[max(0, discard - frames) :], len(values)
                frames += count
                self.probe.taken["codec"] += count
                self.probe.touch()
                if "codec" in self.probe.silent or not values:
                    continue
                data = np.repeat(np.array(values, np.float32), SAMPLES_PER_FRAME).tobytes()
                yield codec_pb2.DecodeResponse(audio=codec_pb2.DecodeAudio(data=data))
            yield codec_pb2.DecodeResponse(
                finished=codec_pb2.DecodeFinished(frames=frames, samples=frames * SAMPLES_PER_FRAME)
            )

    async def GetModelInfo(self, request, context):
        return codec_pb2.GetModelInfoResponse(bundle=self.probe.identity)


class FakeWatermark(watermark_pb2_grpc.WatermarkServiceServicer):
    def __init__(self, probe: StageProbe):
        self.probe = probe

    async def Embed(self, request_iterator, context):
        with self.probe.call("watermark", context):
            held = np.zeros(0, np.float32)
            total = discard = missing = 0
            async for request in request_iterator:
                if request.HasField("start"):
                    self.probe.admit("watermark")
                    discard, checkpoint = request.start.discard_samples, request.start.checkpoint
                    total, first = checkpoint.first_marked_sample, checkpoint.first_sample
                    missing = total - first  # samples that only restore the state
                    assert discard >= total
                    yield watermark_pb2.EmbedResponse(
                        started=watermark_pb2.EmbedStarted(
                            format=request.start.format,
                            lookahead_samples=LOOKAHEAD,
                            key_id="new",
                            first_sample=first,
                        )
                    )
                    continue
                held = np.concatenate([held, np.frombuffer(request.audio.data, "<f4")])
                self.probe.taken["watermark"] += len(request.audio.data) // 4 // SAMPLES_PER_FRAME
                self.probe.touch()
                if "watermark" in self.probe.silent:
                    continue
                count = max(len(held) - LOOKAHEAD, min(self.probe.opening_samples - total, len(held)), 0)
                ready, held = held[:count], held[count:]
                restored = min(missing, len(ready))
                ready, missing = ready[restored:], missing - restored
                new = ready[max(0, discard - total) :]
                total += len(ready)
                if len(new):
                    yield self._marked(new, total)
                    if self.probe.finish_early:
                        break
            if self.probe.finish_early:
                held = held[:0]
            held = held[missing + self.probe.lose_samples :]
            if len(new := held[max(0, discard - total) :]):
                yield self._marked(new, total)
            yield watermark_pb2.EmbedResponse(finished=watermark_pb2.EmbedFinished(samples=total + len(held)))

    @staticmethod
    def _marked(samples, total):
        audio = watermark_pb2.MarkedAudio(data=(samples + np.float32(MARK)).tobytes())
        if total > CHECKPOINT_SAMPLES:
            audio.checkpoint.first_sample = total - CHECKPOINT_SAMPLES
            audio.checkpoint.first_marked_sample = total + CHECKPOINT_SAMPLES
        return watermark_pb2.EmbedResponse(audio=audio)

    async def Detect(self, request, context):
        with self.probe.call("detector", context):
            response = watermark_pb2.DetectResponse(
                found=True, confidence=0.9, threshold=0.6, decoded_key=b"12345", key_id="old"
            )
            response.position.FromMilliseconds(250)
            return response

    async def DetectStream(self, requests, context):
        with self.probe.call("detector", context):
            assert (await anext(requests)).HasField("start")
            yield watermark_pb2.DetectStreamResponse(started=watermark_pb2.DetectStarted())
            data = b"".join([request.audio.data async for request in requests])
            progress = watermark_pb2.DetectProgress()
            progress.searched.FromMilliseconds(len(data))
            yield watermark_pb2.DetectStreamResponse(progress=progress)
            answer = watermark_pb2.DetectResponse(found=data.endswith(b"marked"), confidence=0.9, threshold=0.6)
            yield watermark_pb2.DetectStreamResponse(finished=answer)

    async def GetModelInfo(self, request, context):
        return watermark_pb2.GetModelInfoResponse(
            bundle=self.probe.identity,
            lookahead_samples=LOOKAHEAD,
            opening_samples=self.probe.opening_samples,
            trained=True,
        )


def servicers(probe: StageProbe):
    """stage → (servicer, function that adds it to a server)."""
    return {
        "tokenizer": (FakeTokenizer(probe), tokenizer_pb2_grpc.add_TokenizerServiceServicer_to_server),
        "backbone": (
            FakeBackbone(probe),  # type: ignore[abstract]  # it has the calls that the gateway makes
            backbone_pb2_grpc.add_BackboneServiceServicer_to_server,
        ),
        "codec": (FakeCodec(probe), codec_pb2_grpc.add_CodecServiceServicer_to_server),
        "watermark": (FakeWatermark(probe), watermark_pb2_grpc.add_WatermarkServiceServicer_to_server),
    }
