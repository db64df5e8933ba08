"""Riva's SpeechSynthesis over our SpeechService: the same access, limits, spans and watermark."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import grpc
from csm.common.v1 import common_pb2
from csm.speech.v1 import speech_pb2

from gateway.riva import riva_common_pb2, riva_tts_pb2, riva_tts_pb2_grpc
from gateway.servicer import SpeechServicer
from models.bundle import Bundle
from services.runtime.errors import InvalidArgument

log = logging.getLogger(__name__)

_PCM = (riva_common_pb2.ENCODING_UNSPECIFIED, riva_common_pb2.LINEAR_PCM)
_PROMPT_RATE_HZ = 22_050  # of a clip without a header whose rate is not stated
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
        async with aclosing(self._speak(request, context, streamed=False)) as pieces:
            audio = [piece async for piece in pieces]
        return riva_tts_pb2.SynthesizeSpeechResponse(audio=b"".join(audio), meta=meta, id=_id(request))

    async def SynthesizeOnline(
        self, request_iterator: AsyncIterator[riva_tts_pb2.SynthesizeSpeechRequest], context: grpc.aio.ServicerContext
    ) -> AsyncGenerator[riva_tts_pb2.SynthesizeSpeechResponse, None]:
        async for request in request_iterator:
            async with aclosing(self._speak(request, context)) as pieces:
                async for piece in pieces:
                    yield riva_tts_pb2.SynthesizeSpeechResponse(audio=piece, id=_id(request))

    async def _speak(
        self,
        request: riva_tts_pb2.SynthesizeSpeechRequest,
        context: grpc.aio.ServicerContext,
        *,
        streamed: bool = True,
    ) -> AsyncGenerator[bytes, None]:
        """Audio, whole samples and never none. Raises: CallError, whose fields are Riva's."""
        spoken = speech_pb2.StreamSynthesizeRequest(utterance=self._utterance(request), output=_output(request))
        try:
            async with aclosing(self._speech.speak(spoken, context, streamed=streamed)) as responses:
                async for response in responses:
                    if response.WhichOneof("event") == "audio":
                        yield response.audio.data
        except InvalidArgument as error:
            raise InvalidArgument(_field(error.field), error.description, reason=error.reason) from None

    def _utterance(self, request: riva_tts_pb2.SynthesizeSpeechRequest) -> speech_pb2.Utterance:
        if request.encoding not in _PCM:
            raise InvalidArgument("encoding", "must be LINEAR_PCM: no other is made yet")
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
    if data.audio_prompt[:4] in (b"RIFF", b"RF64"):
        clip.wav = data.audio_prompt
    elif data.encoding in _PCM:
        form = common_pb2.AudioFormat(
            encoding=common_pb2.AUDIO_ENCODING_PCM_S16LE, sample_rate_hz=data.sample_rate_hz or _PROMPT_RATE_HZ
        )
        clip.raw.CopyFrom(common_pb2.RawAudio(format=form, data=data.audio_prompt))
    else:
        raise InvalidArgument("zero_shot_data.audio_prompt", "must be a WAV file or 16-bit samples")
    return speech_pb2.ContextSegment(text=data.transcript, audio=clip)


def _tune(utterance: speech_pb2.Utterance, name: str, parse: Callable[[str], Any], text: str) -> None:
    holder = utterance if name == "max_audio_ms" else utterance.sampling
    try:
        setattr(holder, name, parse(text))
    except (ValueError, TypeError):
        raise InvalidArgument(f"custom_configuration[{name}]", f"is no number that fits: {text[:32]!r}") from None


def _output(request: riva_tts_pb2.SynthesizeSpeechRequest) -> speech_pb2.OutputOptions:
    output = speech_pb2.OutputOptions(encoding=common_pb2.AUDIO_ENCODING_PCM_S16LE)
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
