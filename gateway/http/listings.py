"""`GET /v1/audio/voices`, `/v1/models` and the health of the process."""

from __future__ import annotations

from collections.abc import Callable

from csm.speech.v1 import speech_pb2
from csm.voice.v1 import voice_pb2

from gateway.http.errors import HttpError
from gateway.http.exchange import Exchange
from gateway.http.upstream import Upstream, unary

_TIMEOUT_S = 10.0
_RETRY_S = 1.0


class Voices:
    """The caller's voices and the bundle's."""

    def __init__(self, upstream: Upstream):
        self._upstream = upstream

    async def __call__(self, exchange: Exchange) -> None:
        """Raises: SpeechError, CallerLeft."""
        request = voice_pb2.ListVoicesRequest()
        found = await unary(self._upstream.voices.ListVoices, request, exchange.metadata(), _TIMEOUT_S)
        voices = [
            {
                "id": voice.name,
                "object": "voice",
                "name": voice.name,
                "language": voice.language,
                "description": voice.description,
                "is_own": bool(voice.id),
            }
            for voice in found.voices
        ]
        await exchange.answer_json({"object": "list", "voices": voices})


class Models:
    """The bundle: `model` of a request may be anything."""

    def __init__(self, upstream: Upstream):
        self._upstream = upstream

    async def __call__(self, exchange: Exchange) -> None:
        """Raises: HttpError, SpeechError, CallerLeft."""
        request = speech_pb2.ListVoicesRequest()
        found = await unary(self._upstream.speech.ListVoices, request, exchange.metadata(), _TIMEOUT_S)
        model = {
            "id": found.bundle.bundle_id,
            "object": "model",
            "created": 0,
            "owned_by": "csm",
            "description": found.description,
            "trained": found.trained,
            "version": found.version,
            "languages": list(found.languages),
            "max_input_chars": found.max_text_chars,
        }
        wanted = exchange.path_params.get("model")
        if wanted is None:
            await exchange.answer_json({"object": "list", "data": [model]})
        elif wanted == model["id"]:
            await exchange.answer_json(model)
        else:
            raise HttpError(404, f"model: there is {model['id']} here", param="model", code="model_not_found")


class Ready:
    """Whether a request would be served: the gateway's own health check says so, and this process does not stop."""

    def __init__(self, upstream: Upstream, is_draining: Callable[[], bool]):
        self._upstream, self._is_draining = upstream, is_draining

    async def __call__(self, exchange: Exchange) -> None:
        """Raises: HttpError, CallerLeft."""
        if self._is_draining():
            raise HttpError(503, "this server is stopping", code="stopping", retry_after_s=_RETRY_S)
        if not await self._upstream.is_ready():
            raise HttpError(503, "the gateway is not ready", code="not_ready", retry_after_s=_RETRY_S)
        await exchange.answer_json({"status": "ready"})


async def alive(exchange: Exchange) -> None:
    """This process runs. Raises: CallerLeft."""
    await exchange.answer_json({"status": "alive"})
