"""VoiceService: named voices, each its owner's own."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable

import grpc
from csm.common.v1 import common_pb2
from csm.voice.v1 import voice_pb2, voice_pb2_grpc

from gateway.access import Access
from gateway.speech.prompt_tokenizer import Heard, PromptTokenizer
from gateway.voices.library import LibraryError, VoiceLibrary, VoiceTaken
from gateway.voices.names import VoiceNames
from gateway.voices.voice import NAME, NAME_RULE, NamedVoice
from models.bundle import Bundle
from services.runtime.audio import AudioError, wav_bytes
from services.runtime.audio_clip import read_clip
from services.runtime.errors import CallError, InvalidArgument, UnavailableError

MIN_CLIP_S, MAX_CLIP_S = 1.0, 30.0
MAX_TEXT_CHARS, MAX_LABELS, MAX_LABEL_CHARS, MAX_VOICES = 2000, 16, 256, 1000


class VoiceServicer(voice_pb2_grpc.VoiceServiceServicer):
    """tokenizer: makes one for a call, whose timeout is given. A voice is kept only when the model can read it."""

    def __init__(
        self,
        bundle: Bundle,
        library: VoiceLibrary,
        names: VoiceNames,
        access: Access,
        tokenizer: Callable[[grpc.aio.ServicerContext], PromptTokenizer],
    ):
        self._bundle, self._library, self._names = bundle, library, names
        self._access, self._tokenizer = access, tokenizer

    async def CreateVoice(
        self, request: voice_pb2.CreateVoiceRequest, context: grpc.aio.ServicerContext
    ) -> voice_pb2.CreateVoiceResponse:
        with self._access.enter():
            owner, name = self._access.owner(), request.name.lower()
            self._check(request, name, owner)
            try:
                clip = await asyncio.to_thread(read_clip, request.audio, max_duration_s=MAX_CLIP_S)
            except AudioError as error:
                raise InvalidArgument(f"audio.{error.field}", error.description) from None
            if clip.duration_s < MIN_CLIP_S:
                raise InvalidArgument("audio", f"has {clip.duration_s:.2f} s, at least {MIN_CLIP_S:g} s are needed")
            wav = await asyncio.to_thread(wav_bytes, clip.samples, clip.sample_rate_hz)
            voice = NamedVoice(
                owner=owner,
                name=name,
                speaker=request.speaker,
                transcript=request.transcript,
                language=request.language or self._bundle.languages[0],
                consent_statement=request.consent_statement,
                audio_s=clip.duration_s,
                created_s=time.time(),
                clip_sha256=hashlib.sha256(wav).hexdigest(),
                labels=dict(request.labels),
            )
            heard = Heard(voice.speaker, voice.transcript, common_pb2.AudioClip(wav=wav), "transcript")
            try:
                await self._tokenizer(context).heard([heard])
            except InvalidArgument as error:
                field = error.field.replace("transcript.text", "transcript").replace("transcript.speaker", "speaker")
                raise InvalidArgument(field.replace("transcript.audio", "audio"), error.description) from None
            try:
                kept = await self._library.create(voice, wav)
            except VoiceTaken:
                text = f"name: there is another voice {name!r}; voices never change, delete it first"
                raise CallError(grpc.StatusCode.ALREADY_EXISTS, text, reason="VOICE_EXISTS") from None
            except LibraryError as error:
                raise _unavailable(error) from None
            return voice_pb2.CreateVoiceResponse(voice=_message(kept))

    async def GetVoice(
        self, request: voice_pb2.GetVoiceRequest, context: grpc.aio.ServicerContext
    ) -> voice_pb2.GetVoiceResponse:
        with self._access.enter():
            own = {voice.name: voice for voice in self._bundles()}
            voice = own.get(request.name.lower()) or _message(await self._find(request.name))
            return voice_pb2.GetVoiceResponse(voice=voice)

    async def ListVoices(
        self, request: voice_pb2.ListVoicesRequest, context: grpc.aio.ServicerContext
    ) -> voice_pb2.ListVoicesResponse:
        with self._access.enter():
            kept = [_message(voice) for voice in self._library.voices(self._access.owner())]
            return voice_pb2.ListVoicesResponse(voices=[*self._bundles(), *kept])

    async def DeleteVoice(
        self, request: voice_pb2.DeleteVoiceRequest, context: grpc.aio.ServicerContext
    ) -> voice_pb2.DeleteVoiceResponse:
        with self._access.enter():
            if self._names.is_reserved(request.name.lower()):
                raise InvalidArgument("name", "is one of the bundle's own voices, which cannot be deleted")
            voice = await self._find(request.name)
            try:
                await self._library.delete(voice)
            except LibraryError as error:
                raise _unavailable(error) from None
            return voice_pb2.DeleteVoiceResponse()

    def _check(self, request: voice_pb2.CreateVoiceRequest, name: str, owner: str) -> None:
        if not NAME.fullmatch(name):
            raise InvalidArgument("name", f"{NAME_RULE}; not {request.name[:64]!r}")
        if self._names.is_reserved(name):
            raise InvalidArgument("name", f"{name!r} is one of the bundle's own voices")
        if request.speaker < 0:
            raise InvalidArgument("speaker", f"must be 0 or greater, not {request.speaker}")
        for field in ("transcript", "consent_statement"):
            length = len(getattr(request, field).strip())
            if not 1 <= length <= MAX_TEXT_CHARS:
                raise InvalidArgument(field, f"must have 1 to {MAX_TEXT_CHARS} characters, not {length}")
        if request.language and request.language.split("-")[0].lower() not in self._languages():
            raise InvalidArgument("language", f"must be one of {', '.join(self._bundle.languages)}")
        labels = request.labels
        if len(labels) > MAX_LABELS or any(len(part) > MAX_LABEL_CHARS for pair in labels.items() for part in pair):
            raise InvalidArgument(
                "labels", f"must be at most {MAX_LABELS}, each key and value at most {MAX_LABEL_CHARS} characters"
            )
        if len(self._library.voices(owner)) >= MAX_VOICES:
            text = f"name: {MAX_VOICES} voices are all that one owner may keep; delete one first"
            raise CallError(grpc.StatusCode.RESOURCE_EXHAUSTED, text, reason="TOO_MANY_VOICES", retryable=False)

    def _languages(self) -> set[str]:
        return {language.split("-")[0].lower() for language in self._bundle.languages}

    async def _find(self, name: str) -> NamedVoice:
        try:
            voice = await self._library.get(self._access.owner(), name.lower())
        except LibraryError as error:
            raise _unavailable(error) from None
        if voice is None:
            known = ", ".join(self._names.known(self._access.owner())) or "none yet"
            text = f"name: no voice {name[:64]!r}; there are {known}"
            raise CallError(grpc.StatusCode.NOT_FOUND, text, reason="NO_VOICE")
        return voice

    def _bundles(self) -> list[voice_pb2.Voice]:
        return [
            voice_pb2.Voice(
                name=voice.name.lower(),
                speaker=voice.speaker,
                description=voice.description,
                language=self._bundle.languages[0],
            )
            for voice in self._bundle.voices
        ]


def _message(voice: NamedVoice) -> voice_pb2.Voice:
    message = voice_pb2.Voice(
        name=voice.name,
        id=voice.id,
        owner=voice.owner,
        speaker=voice.speaker,
        transcript=voice.transcript,
        language=voice.language,
        labels=voice.labels,
        consent_statement=voice.consent_statement,
    )
    message.audio_duration.FromNanoseconds(round(voice.audio_s * 1e9))
    message.create_time.FromNanoseconds(round(voice.created_s * 1e9))
    return message


def _unavailable(error: LibraryError) -> UnavailableError:
    return UnavailableError(f"the voice library cannot be used: {error}", reason="VOICE_LIBRARY")
