"""`python -m gateway`: the public service."""

from __future__ import annotations

from services.runtime.extras import require_extra

require_extra("gateway")

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from csm.speech.v1 import speech_pb2_grpc

from gateway.config import GatewaySettings
from gateway.servicer import SpeechServicer
from gateway.stages import Stages
from models.bundle import load_bundle
from models.files import ModelError
from services.runtime.server import Stage, main
from services.runtime.settings import SettingError


@asynccontextmanager
async def open_stage(settings: GatewaySettings) -> AsyncIterator[Stage]:
    """The servicer and its channels. Raises: StartError, ModelError."""
    bundle = load_bundle(settings.model)
    async with Stages(settings, bundle) as stages:
        servicer = SpeechServicer(settings, bundle, stages, _ramp(settings.ramp_frames))

        async def is_ready() -> bool:
            return stages.info is not None

        yield Stage(
            service="csm.speech.v1.SpeechService",
            register=lambda server: speech_pb2_grpc.add_SpeechServiceServicer_to_server(servicer, server),
            is_ready=is_ready,
            interceptors=[servicer.access],
            on_stop=servicer.stop,
        )


def _ramp(text: str) -> list[int]:
    try:
        ramp = [int(frames) for frames in text.split(",")]
    except ValueError:
        ramp = []
    if not ramp or not all(1 <= frames <= 64 for frames in ramp):
        raise SettingError(f"CSM_GATEWAY_RAMP_FRAMES={text!r}: must be numbers from 1 to 64 with commas between")
    return ramp


if __name__ == "__main__":
    main("gateway", GatewaySettings, open_stage, start_errors=(ModelError,))
