"""The gateway's public services, ready to be served."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
from csm.speech.v1 import speech_pb2_grpc
from csm.voice.v1 import voice_pb2_grpc

from gateway.audit import AuditTrail
from gateway.config import GatewaySettings
from gateway.riva import riva_tts_pb2_grpc
from gateway.riva.servicer import RivaServicer
from gateway.servicer import SpeechServicer
from gateway.stages import Stages
from gateway.voices.library import LibraryError, VoiceLibrary
from gateway.voices.names import VoiceNames
from gateway.voices.servicer import VoiceServicer
from models.bundle import Bundle
from services.runtime.server import Stage
from services.runtime.settings import SettingError

SPEECH, VOICE = "csm.speech.v1.SpeechService", "csm.voice.v1.VoiceService"
RIVA = "nvidia.riva.tts.RivaSpeechSynthesis"


@asynccontextmanager
async def open_public(settings: GatewaySettings, bundle: Bundle, stages: Stages) -> AsyncIterator[Stage]:
    """Raises: SettingError."""
    url = settings.voices_url or str(_data_folder() / "voices")
    try:
        library = await asyncio.to_thread(VoiceLibrary, url, refresh_s=settings.voices_refresh_s)
    except LibraryError as error:
        raise SettingError(f"CSM_VOICES_URL={url!r}: {error}") from error
    async with library, AuditTrail.of(settings, stages) as audit:
        names = VoiceNames(bundle, library, settings.voice_aliases)
        speech = SpeechServicer(settings, bundle, stages, _ramp(settings.ramp_frames), names, audit)
        voices = VoiceServicer(bundle, library, names, speech.access, speech.prompt_tokenizer)

        def register(server: grpc.aio.Server) -> None:
            speech_pb2_grpc.add_SpeechServiceServicer_to_server(speech, server)
            voice_pb2_grpc.add_VoiceServiceServicer_to_server(voices, server)
            if settings.riva:
                riva_tts_pb2_grpc.add_RivaSpeechSynthesisServicer_to_server(RivaServicer(bundle, speech), server)

        async def is_ready() -> bool:
            return stages.info is not None

        yield Stage(
            service=SPEECH,
            more_services=(VOICE, RIVA) if settings.riva else (VOICE,),
            register=register,
            is_ready=is_ready,
            interceptors=[speech.access],
            on_stop=speech.stop,
            build={"bundle": bundle.id},
            trusts_trace=settings.trust_trace,
        )


def _data_folder() -> Path:
    """Of this user; without a home, a folder for what may be lost."""
    if data := os.environ.get("XDG_DATA_HOME"):
        return Path(data) / "csm"
    try:
        return Path.home() / ".local" / "share" / "csm"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"csm-{os.getuid()}"


def _ramp(text: str) -> list[int]:
    try:
        ramp = [int(frames) for frames in text.split(",")]
    except ValueError:
        ramp = []
    if not ramp or not all(1 <= frames <= 64 for frames in ramp):
        raise SettingError(f"CSM_GATEWAY_RAMP_FRAMES={text!r}: must be numbers from 1 to 64 with commas between")
    return ramp
