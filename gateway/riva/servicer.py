"""Riva's SpeechSynthesis over our SpeechService: the same access, limits, spans and watermark."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import grpc
import numpy as np
from csm.common.v1 import common_pb2
from csm.speech.v1 import speech_pb2

from gateway.audio import FORMATS, AsyncEncoder, FormatError, open_encoder
from gateway.riva import riva_common_pb2, riva_tts_pb2, riva_tts_pb2_grpc
from gateway.servicer import SpeechServicer
from models.bundle import Bundle
from services.runtime.audio_file import sniff
from services.runtime.errors import InvalidArgument

log = logging.getLogger(__name__)

_PCM = (riva_common_pb2.ENCODING_UNSPECIFIED, riva_common_pb2.LINEAR_PCM)
_SAMPLES = {
    riva_common_pb2.ENCODING_UNSPECIFIED: common_pb2.AUDIO_ENCODING_PCM_S16LE,
    riva_common_pb2.LINEAR_PCM: common_pb2.AUDIO_ENCODING_PCM_S16LE,
    riva_common_pb2.MULAW: common_pb2.AUDIO_ENCODING_MULAW,
    riva_common_pb2.ALAW: common_pb2.AUDIO_ENCODING_ALAW,
}
_FILES = {riva_common_pb2.FLAC: "flac", riva_common_pb2.OGGOPUS: "ogg_opus"}
_OPUS_RATES = FORMATS["ogg_opus"].rates
_PROMPT_RATE_HZ = 22_050  # of a clip without a header whose rate is not stated
_TELEPHONY_HZ = 8_000  # of G.711 samples, likewise
_TUNING: dict[str, Callable[[str], Any]] = {"seed": int, "temperature": float, "top_k": int, "max_audio_ms": int}
_FIELDS = {
    "utterance.text": "text",
    "utterance.voice": "voice_name",
    "utterance.context[0].audio": "zero_shot_data.audio_prompt",
    "utterance.context[0].text": "zero_shot_data.transcript",
    "utterance.context": "zero_shot_data",
    "output.sample_rate_hz": "sample_rate_hz",
    "utterance.sampling": "custom_configuration",
    "utterance.max_audio_ms": "custom_configuration[max_audio_ms]",
}
# What a file's encoder is fed: every sample as it was marked, at the bundle's rate.
_UNCODED = speech_pb2.OutputOptions(encoding=common_pb2.AUDIO_ENCODING_PCM_F32LE)


class RivaServicer(riva_tts_pb2_grpc.RivaSpeechSynthesisServicer):
    """Its clients send no deadline, no trace, and no token to GetRivaSynthesisConfig."""

    def __init__(self, bundle: Bundle, speech: SpeechServicer):
        self._bundle, self._speech = bundle, speech
        self._languages = {language.split("-")[0].lower() for language in bundle.languages}

    async def GetRivaSynthesisConfig(
        self, request: riva_tts_pb2.RivaSynthesisConfigRequest, context: grpc.aio.ServicerContext
    ) -> riva_tts_pb2.RivaSynthesisConfigResponse:
        response = riva_tts_pb2.RivaSynthesisConfigResponse()
        if request.model_name in ("", self._bundle.id):
            language = self._bundle.languages[0]
            response.model_config.add(
                model_name=self._bundle.id,
                parameters={
                    "language_code": "en-US" if language == "en" else language,
                    "voice_name": self._bundle.id,
                    "subvoices": ",".join(f"{voice.name}:{voice.speaker}" for voice in self._bundle.voices),
                    "sample_rate": str(self._bundle.sample_rate_hz),
                },
            )
        return response

    async def Synthesize(
        self, request: riva_tts_pb2.SynthesizeSpeechRequest, context: grpc.aio.ServicerContext
    ) -> riva_tts_pb2.SynthesizeSpeechResponse:
        meta = riva_tts_pb2.SynthesizeSpeechResponseMetadata(text=request.text)
        file = self._file(request)
        async with aclosing(self._speak(request, context, file, streamed=False)) as pieces:
            audio = [piece async for piece in pieces]
        if file is not None:
            audio += await file.finish()
        return riva_tts_pb2.SynthesizeSpeechResponse(audio=b"".join(audio), meta=meta, id=_id(request))

    async def SynthesizeOnline(
        self, request_iterator: AsyncIterator[riva_tts_pb2.SynthesizeSpeechRequest], context: grpc.aio.ServicerContext
    ) -> AsyncGenerator[riva_tts_pb2.SynthesizeSpeechResponse, None]:
        file: AsyncEncoder | None = None  # one for all texts of the call
        first: riva_tts_pb2.SynthesizeSpeechRequest | None = None
        async for request in request_iterator:
            if first is None:
                first, file = request, self._file(request)
            elif request.encoding != first.encoding or request.sample_rate_hz != first.sample_rate_hz:
                raise InvalidArgument("encoding", "and sample_rate_hz must be the same in all requests of a call")
            async with aclosing(self._speak(request, context, file)) as pieces:
                async for piece in pieces:
                    yield riva_tts_pb2.SynthesizeSpeechResponse(audio=piece, id=_id(request))
        if file is not None and first is not None:
            for piece in await file.finish():
                yield riva_tts_pb2.SynthesizeSpeechResponse(audio=piece, id=_id(first))

    def _file(self, request: riva_tts_pb2.SynthesizeSpeechRequest) -> AsyncEncoder | None:
        """For an encoding that is a file. Raises: InvalidArgument."""
        if request.encoding in _SAMPLES:
            return None
        if request.encoding not in _FILES:
            raise InvalidArgument("encoding", "must be LINEAR_PCM, FLAC, MULAW, OGGOPUS or ALAW")
        rate = request.sample_rate_hz or None
        if request.encoding == riva_common_pb2.OGGOPUS and rate is not None:
            # Opus has five rates, and plays at any: Riva's clients ask for 22,050 Hz by default.
            rate = min((known for known in _OPUS_RATES if known >= rate), default=rate)
        try:
            encoder = open_encoder(
                _FILES[request.encoding],
                input_rate_hz=self._bundle.sample_rate_hz,
                sample_rate_hz=rate,
                model=self._bundle.id,
            )
        except FormatError as error:
            raise InvalidArgument(error.field, error.description) from None
        return AsyncEncoder(encoder)

    async def _speak(
        self,
        request: riva_tts_pb2.SynthesizeSpeechRequest,
        context: grpc.aio.ServicerContext,
        file: AsyncEncoder | None,
        *,
        streamed: bool = True,
    ) -> AsyncGenerator[bytes, None]:
        """Audio, whole samples and never none. file: what writes it; None: samples. Raises: CallError, whose fields
        are Riva's.
        """
        output = _output(request) if file is None else _UNCODED
        spoken = speech_pb2.StreamSynthesizeRequest(utterance=self._utterance(request), output=output)
        try:
            async with aclosing(self._speech.speak(spoken, context, streamed=streamed)) as responses:
                async for response in responses:
                    if response.WhichOneof("event") != "audio":
                        continue
                    if file is None:
                        yield response.audio.data
                        continue
                    for piece in await file.feed(np.frombuffer(response.audio.data, "<f4")):
                        yield piece
        except InvalidArgument as error:
            raise InvalidArgument(_field(error.field), error.description, reason=error.reason) from None

    def _utterance(self, request: riva_tts_pb2.SynthesizeSpeechRequest) -> speech_pb2.Utterance:
        language = request.language_code.split("-")[0].lower()
        if language and language not in self._languages:
            known = ", ".join(self._bundle.languages)
            raise InvalidArgument("language_code", f"must be one of {known}, not {request.language_code[:32]!r}")
        utterance = speech_pb2.Utterance(text=request.text)
        if request.HasField("zero_shot_data"):
            utterance.context.append(_prompt(request.zero_shot_data))
        else:
            utterance.voice = request.voice_name
        for name, parse in _TUNING.items():
            if name in request.custom_configuration:
                _tune(utterance, name, parse, request.custom_configuration[name])
        if request.custom_dictionary:
            log.debug("custom_dictionary is ignored: CSM has no phonemes")
        return utterance


def _prompt(data: riva_tts_pb2.ZeroShotData) -> speech_pb2.ContextSegment:
    if not data.transcript.strip():
        raise InvalidArgument(
            "zero_shot_data.transcript",
            "is needed: CSM imitates a voice from a clip and its words; or keep the voice under a name (VoiceService)",
        )
    clip = common_pb2.AudioClip()
    # What the bytes are decides, not the stated encoding: clients send a file's bytes and state none.
    if sniff(data.audio_prompt) or data.encoding not in _SAMPLES:
        clip.file = data.audio_prompt
    else:
        rate = _PROMPT_RATE_HZ if data.encoding in _PCM else _TELEPHONY_HZ
        form = common_pb2.AudioFormat(encoding=_SAMPLES[data.encoding], sample_rate_hz=data.sample_rate_hz or rate)
        clip.raw.CopyFrom(common_pb2.RawAudio(format=form, data=data.audio_prompt))
    return speech_pb2.ContextSegment(text=data.transcript, audio=clip)


def _tune(utterance: speech_pb2.Utterance, name: str, parse: Callable[[str], Any], text: str) -> None:
    holder = utterance if name == "max_audio_ms" else utterance.sampling
    try:
        setattr(holder, name, parse(text))
    except (ValueError, TypeError):
        raise InvalidArgument(f"custom_configuration[{name}]", f"is no number that fits: {text[:32]!r}") from None


def _output(request: riva_tts_pb2.SynthesizeSpeechRequest) -> speech_pb2.OutputOptions:
    output = speech_pb2.OutputOptions(encoding=_SAMPLES[request.encoding])
    if request.sample_rate_hz:
        output.sample_rate_hz = request.sample_rate_hz
    return output


def _id(request: riva_tts_pb2.SynthesizeSpeechRequest) -> riva_common_pb2.RequestId | None:
    return request.id if request.HasField("id") else None


def _field(ours: str) -> str:
    for prefix, theirs in _FIELDS.items():
        if ours == prefix or ours.startswith((f"{prefix}.", f"{prefix}[")):
            return theirs
    return ours
