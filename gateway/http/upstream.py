"""The gateway behind this process: one channel, shared by all requests."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, TypeVar

import grpc
from csm.speech.v1 import speech_pb2_grpc
from csm.voice.v1 import voice_pb2_grpc
from csm_client.exceptions import from_rpc_error
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gateway.http.config import HttpSettings
from services.runtime import tls
from services.runtime.channels import open_with
from services.runtime.grpc_options import channel_options
from services.runtime.reloadable_file import InvalidFile
from services.runtime.settings import SettingError

Metadata = tuple[tuple[str, str], ...]
T = TypeVar("T")
_MESSAGE_MIB = 64
_HEALTH_S = 2.0
# A call that no gateway has taken yet is tried on the next one. Overload is for the caller to wait out.
_SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "healthCheckConfig": {"serviceName": "readiness"},
    "methodConfig": [
        {
            "name": [{"service": "csm.speech.v1.SpeechService"}, {"service": "csm.voice.v1.VoiceService"}],
            "retryPolicy": {
                "maxAttempts": 3,
                "initialBackoff": "0.05s",
                "maxBackoff": "0.5s",
                "backoffMultiplier": 3,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
}


class Upstream:
    """Stubs of the gateway. To be made while an event loop runs."""

    def __init__(self, settings: HttpSettings):
        """Raises: SettingError."""
        files = tls.ClientFiles(settings.gateway_ca_file, settings.gateway_cert_file, settings.gateway_key_file)
        credentials = None
        if files:
            try:
                credentials = tls.reloadable_channel_credentials(files)
            except InvalidFile as error:
                names = "CSM_HTTP_GATEWAY_CA_FILE, CSM_HTTP_GATEWAY_CERT_FILE, CSM_HTTP_GATEWAY_KEY_FILE"
                raise SettingError(f"{names}: {error}") from error
        else:
            tls.require_private(
                "CSM_HTTP_GATEWAY_ADDRESS", settings.gateway, "CSM_HTTP_GATEWAY_CA_FILE", settings.insecure
            )
        options = [*channel_options(_MESSAGE_MIB), ("grpc.service_config", json.dumps(_SERVICE_CONFIG))]
        self._channel = open_with(settings.gateway, options, credentials)
        self.speech = speech_pb2_grpc.SpeechServiceStub(self._channel)
        self.voices = voice_pb2_grpc.VoiceServiceStub(self._channel)
        self._health = health_pb2_grpc.HealthStub(self._channel)

    async def __aenter__(self) -> Upstream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._channel.close()

    async def is_ready(self) -> bool:
        """Whether a gateway can serve."""
        request = health_pb2.HealthCheckRequest(service="readiness")
        try:
            answer = await self._health.Check(request, timeout=_HEALTH_S)
        except grpc.aio.AioRpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def unary(call: Callable[..., Awaitable[T]], request: Any, metadata: Metadata, timeout_s: float) -> T:
    """Raises: SpeechError."""
    try:
        return await call(request, timeout=timeout_s, metadata=metadata)
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from error
