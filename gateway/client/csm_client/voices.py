"""Voices under names: `client.named_voices`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any

import grpc
from csm.voice.v1 import voice_pb2, voice_pb2_grpc

from csm_client import requests
from csm_client.requests import Audio

_SERVICE = "csm.voice.v1.VoiceService"
_NONE: Mapping[str, str] = MappingProxyType({})


class NamedVoices:
    """The caller's own voices and the bundle's. Methods raise: SpeechError."""

    def __init__(self, channel: grpc.aio.Channel, run: Callable[..., Awaitable[Any]]):
        self._stub, self._run = voice_pb2_grpc.VoiceServiceStub(channel), run

    async def create(
        self,
        name: str,
        *,
        transcript: str,
        audio: Audio,
        consent_statement: str,
        speaker: int | None = None,
        language: str | None = None,
        labels: Mapping[str, str] = _NONE,
        timeout_s: float | None = None,
    ) -> voice_pb2.Voice:
        """Keep a WAV of 1 to 30 seconds (its bytes, or its path) and its words, word for word, under a name.

        consent_statement: how the person in the clip agreed. When another voice has the name the error's reason is
        VOICE_EXISTS.
        """
        request = requests.new_voice(name, transcript, audio, consent_statement, speaker, language, labels)
        response: voice_pb2.CreateVoiceResponse = await self._call("CreateVoice", request, timeout_s)
        return response.voice

    async def get(self, name: str, *, timeout_s: float | None = None) -> voice_pb2.Voice:
        """One voice. When there is none of that name the error's reason is NO_VOICE."""
        response: voice_pb2.GetVoiceResponse = await self._call(
            "GetVoice", voice_pb2.GetVoiceRequest(name=name), timeout_s
        )
        return response.voice

    async def list(self, *, timeout_s: float | None = None) -> list[voice_pb2.Voice]:
        """The bundle's voices, then the caller's own, by name."""
        response: voice_pb2.ListVoicesResponse = await self._call(
            "ListVoices", voice_pb2.ListVoicesRequest(), timeout_s
        )
        return [*response.voices]

    async def delete(self, name: str, *, timeout_s: float | None = None) -> None:
        """Forget a voice and its clip."""
        await self._call("DeleteVoice", voice_pb2.DeleteVoiceRequest(name=name), timeout_s)

    async def _call(self, method: str, request: Any, timeout_s: float | None) -> Any:
        return await self._run(self._stub, _SERVICE, method, request, timeout_s)
