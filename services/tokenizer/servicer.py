"""TokenizerService over the core modules. Imports no torch."""

from __future__ import annotations

import asyncio
import time

import grpc
import numpy as np
from csm.common.v1 import common_pb2
from csm.tokenizer.v1 import tokenizer_pb2, tokenizer_pb2_grpc
from opentelemetry import trace

from models.bundle import Bundle
from services.engine.batcher import Batcher
from services.runtime import instruments
from services.runtime.admission import Admission
from services.runtime.audio import AudioError, Clip, resample
from services.runtime.audio_clip import read_clip
from services.runtime.errors import NOTHING_SPEAKABLE, InvalidArgument
from services.runtime.identity import identity
from services.runtime.version import version
from services.tokenizer.cache import FrameCache, content_key
from services.tokenizer.config import TokenizerSettings
from services.tokenizer.text import TextError, TextTokenizer

_TOKENIZE = {"stage": "tokenizer", "rpc.method": "csm.tokenizer.v1.TokenizerService/Tokenize"}
_ENCODE = {"stage": "tokenizer", "rpc.method": "csm.tokenizer.v1.TokenizerService/EncodeAudio"}


class TokenizerServicer(tokenizer_pb2_grpc.TokenizerServiceServicer):
    """encoding: samples [N] at the bundle's rate → codes [T, K], of the clips that wait together."""

    def __init__(
        self,
        settings: TokenizerSettings,
        bundle: Bundle,
        text: TextTokenizer,
        encoding: Batcher[np.ndarray, np.ndarray],
    ):
        self._settings, self._bundle = settings, bundle
        self._text, self._encoding = text, encoding
        self._cache = FrameCache(settings.cache_mib * 1024 * 1024)
        self._encodings = Admission("audio encodings", settings.max_encodings)
        instruments.observe_admission(self._encodings, "csm.tokenizer.encodings")
        instruments.observe(self._cache, "csm.tokenizer.cache.size", lambda cache: cache.size_bytes)
        instruments.observe(self._cache, "csm.tokenizer.cache.capacity", lambda cache: cache.max_bytes)

    async def Tokenize(
        self, request: tokenizer_pb2.TokenizeRequest, context: grpc.aio.ServicerContext
    ) -> tokenizer_pb2.TokenizeResponse:
        began = time.perf_counter()
        count, most = len(request.segments), self._settings.max_segments
        if not 1 <= count <= most:
            raise InvalidArgument("segments", f"must hold 1 to {most} segments, not {count}")
        response = tokenizer_pb2.TokenizeResponse()
        for i, segment in enumerate(request.segments):
            try:
                normalize = segment.text_normalization if segment.HasField("text_normalization") else True
                if self._text.is_quick(segment.text):
                    done = self._text.encode(segment.speaker, segment.text, normalize)
                else:
                    done = await asyncio.to_thread(self._text.encode, segment.speaker, segment.text, normalize)
            except TextError as error:
                reason = "INVALID_FIELD" if error.has_words else NOTHING_SPEAKABLE
                raise InvalidArgument(f"segments[{i}].{error.field}", error.description, reason=reason) from None
            response.segments.add(ids=done.ids, spoken_text=done.spoken_text)
            await asyncio.sleep(0)  # a request of many long texts lets others in between
        instruments.stage_first_output.record(time.perf_counter() - began, _TOKENIZE)
        return response

    async def EncodeAudio(
        self, request: tokenizer_pb2.EncodeAudioRequest, context: grpc.aio.ServicerContext
    ) -> tokenizer_pb2.EncodeAudioResponse:
        began, span = time.perf_counter(), trace.get_current_span()
        with self._encodings.enter():
            try:
                clip, key = await asyncio.to_thread(self._read, request.audio)
            except AudioError as error:
                raise InvalidArgument(f"audio.{error.field}", error.description) from None
            response = tokenizer_pb2.EncodeAudioResponse()
            response.audio_duration.FromNanoseconds(round(clip.duration_s * 1e9))

            async def make() -> np.ndarray:
                samples, resampling_s = await asyncio.to_thread(self._resample, clip)
                asked = time.perf_counter()
                done = await self._encoding.run(samples, len(samples))
                instruments.stage_chunk.record(done.seconds, _ENCODE)
                instruments.stage_queue.record(max(0.0, time.perf_counter() - asked - done.seconds), _ENCODE)
                if span.is_recording():  # else this caller has left the making to others who want the same clip
                    span.set_attribute("csm.batch_size", done.batch_size)
                response.compute_duration.FromNanoseconds(int((resampling_s + done.share_s) * 1e9))
                return done.result

            codes, response.cached = await self._cache.get(key, make)
            instruments.cache_lookups.add(1, {"result": "hit" if response.cached else "miss"})
            response.frames.extend(common_pb2.Frame(codes=frame) for frame in codes.tolist())
            span.set_attributes({"csm.frames": len(codes), "csm.cached": response.cached})
            instruments.stage_first_output.record(time.perf_counter() - began, _ENCODE)
            return response

    async def GetModelInfo(
        self, request: tokenizer_pb2.GetModelInfoRequest, context: grpc.aio.ServicerContext
    ) -> tokenizer_pb2.GetModelInfoResponse:
        info = tokenizer_pb2.GetModelInfoResponse(
            bundle=identity(self._bundle),
            max_text_chars=self._settings.max_text_chars,
            version=version(),
            languages=self._bundle.languages,
        )
        info.max_audio_duration.FromNanoseconds(int(self._settings.max_audio_s * 1e9))
        return info

    def _read(self, audio: common_pb2.AudioClip) -> tuple[Clip, bytes]:
        """The clip and its key in the cache. Takes milliseconds, so it stays off the event loop."""
        clip = read_clip(audio, max_duration_s=self._settings.max_audio_s)
        return clip, content_key(clip)

    def _resample(self, clip: Clip) -> tuple[np.ndarray, float]:
        """Samples at the bundle's rate, and the seconds it took."""
        began = time.perf_counter()
        return resample(clip, self._bundle.sample_rate_hz).samples, time.perf_counter() - began
