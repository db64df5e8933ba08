"""The chain as the acceptance test uses it: speech through the real gateway, and the same speech before its mark.

Unmarked audio never leaves the gateway, so it is fetched from the stages themselves, with the same prompt and seed.
"""

from __future__ import annotations

import asyncio
import io
import os
import wave
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
from csm.backbone.v1 import backbone_pb2, backbone_pb2_grpc
from csm.codec.v1 import codec_pb2, codec_pb2_grpc
from csm.common.v1 import common_pb2
from csm.tokenizer.v1 import tokenizer_pb2, tokenizer_pb2_grpc
from csm_client import ContextTurn, SpeechClient
from rich.console import Console

from gateway.cli.ports import free_ports
from gateway.cli.up import Plan, deployment

RATE_HZ = 24000
FRAME_SAMPLES = 1920
AT_ONCE = max(2, os.cpu_count() or 1)


@dataclass(frozen=True)
class Spoken:
    """audio: float32 [samples] at 24 kHz. first_s, real_time_factor: as the gateway saw them. words: the spoken form."""

    audio: np.ndarray
    ended: bool
    first_s: float
    real_time_factor: float
    words: str = ""

    @property
    def frames(self) -> int:
        return len(self.audio) // FRAME_SAMPLES


def to_wav(audio: np.ndarray) -> bytes:
    """float32 [samples] at 24 kHz -> a 16-bit WAV."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE_HZ)
        file.writeframes((np.clip(audio, -1, 1) * 32767).round().astype("<i2").tobytes())
    return buffer.getvalue()


class Chain:
    """A running deployment: `async with Chain.start(...) as chain`."""

    def __init__(self, plan: Plan, console: Console, core: int | None):
        self._plan, self._console, self._core = plan, console, core
        self._places = asyncio.Semaphore(AT_ONCE)
        self.preparing = asyncio.Semaphore(2 * AT_ONCE)  # bounds what callers hold ready

    @classmethod
    def start(cls, model: str, folder: Path, console: Console, core: int | None = None) -> Chain:
        """core: run all five services on this one CPU core and nowhere else."""
        return cls(Plan(model, free_ports(), folder), console, core)

    async def __aenter__(self) -> Chain:
        allowed = os.sched_getaffinity(0)
        if self._core is not None:
            os.sched_setaffinity(0, {self._core})  # the services inherit it
        else:  # looking for marks is most of the work
            os.environ.update({name: str(AT_ONCE) for name in ("CSM_WATERMARK_WORKERS", "CSM_WATERMARK_DETECTIONS")})
        if "/" in self._plan.model and "CSM_WATERMARK_KEY_FILE" not in os.environ:
            os.environ.setdefault("CSM_WATERMARK_KEY", "163,25,94,217,72")  # a folder's bundle has no public key
        try:
            self._running = deployment(self._plan, self._console)
            self.client = SpeechClient((await self._running.__aenter__()).address)
        finally:
            os.sched_setaffinity(0, allowed)
            for name in ("CSM_WATERMARK_WORKERS", "CSM_WATERMARK_DETECTIONS"):
                os.environ.pop(name, None)
        channels = {name: grpc.aio.insecure_channel(self._plan.address(name)) for name in self._plan.ports}
        self._channels: Mapping[str, grpc.aio.Channel] = channels
        self._tokenizer = tokenizer_pb2_grpc.TokenizerServiceStub(channels["tokenizer"])
        self._backbone = backbone_pb2_grpc.BackboneServiceStub(channels["backbone"])
        self._codec = codec_pb2_grpc.CodecServiceStub(channels["codec"])
        return self

    async def __aexit__(self, *exc: object) -> None:
        for channel in self._channels.values():
            await channel.close()
        await self.client.close()
        await self._running.__aexit__(None, None, None)

    async def say(
        self, text: str, speaker: int, seed: int, context: Sequence[ContextTurn] = (), **sampling: float
    ) -> Spoken:
        """Through the gateway, sampled at the shipped defaults unless `sampling` says otherwise."""
        async with self._places:
            stream = self.client.stream(text, speaker=speaker, seed=seed, context=context, timeout_s=600, **sampling)
            pcm = b"".join([chunk async for chunk in stream])
        summary = stream.summary
        assert summary is not None
        return Spoken(
            np.frombuffer(pcm, "<i2").astype(np.float32) / 32768,
            summary.finish_reason == common_pb2.FINISH_REASON_END_OF_SPEECH,
            summary.time_to_first_audio.ToNanoseconds() / 1e9,
            summary.real_time_factor,
            summary.spoken_text,
        )

    async def say_unmarked(self, text: str, speaker: int, seed: int) -> np.ndarray:
        """What the codec gave before the watermark: float32 [samples]."""
        async with self._places:
            segment = tokenizer_pb2.TextSegment(speaker=speaker, text=text)
            answer = await self._tokenizer.Tokenize(tokenizer_pb2.TokenizeRequest(segments=[segment]), timeout=60)
            part = backbone_pb2.PromptPart(text=backbone_pb2.TextPart(ids=answer.segments[0].ids))
            request = backbone_pb2.GenerateRequest(prompt=[part], sampling=common_pb2.SamplingOptions(seed=seed))
            frames: list[common_pb2.Frame] = []
            async for response in self._backbone.Generate(request, timeout=600):
                frames.extend(response.chunk.frames)
            return await self._decode(frames)

    async def recode(self, audio: np.ndarray) -> np.ndarray:
        """Through the codec alone: encoded and decoded. float32 [samples]."""
        async with self._places:
            clip = common_pb2.AudioClip(wav=to_wav(audio))
            answer = await self._tokenizer.EncodeAudio(tokenizer_pb2.EncodeAudioRequest(audio=clip), timeout=60)
            return await self._decode(list(answer.frames))

    async def _decode(self, frames: list[common_pb2.Frame]) -> np.ndarray:
        async def requests():
            yield codec_pb2.DecodeRequest(start=codec_pb2.DecodeStart())
            for at in range(0, len(frames), 8):
                yield codec_pb2.DecodeRequest(frames=codec_pb2.DecodeFrames(frames=frames[at : at + 8]))

        parts, encoding = [], None
        async for response in self._codec.Decode(requests(), timeout=600):
            if response.WhichOneof("event") == "started":
                encoding = response.started.format.encoding
            parts.append(response.audio.data)
        if encoding == common_pb2.AUDIO_ENCODING_PCM_S16LE:
            return np.frombuffer(b"".join(parts), "<i2").astype(np.float32) / 32768
        return np.frombuffer(b"".join(parts), "<f4")

    async def marked(self, audio: np.ndarray) -> bool:
        """Whether the gateway finds the mark."""
        async with self._places:
            return (await self.client.verify(to_wav(audio), timeout_s=120)).found
