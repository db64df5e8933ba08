"""Whether a gateway that asks for no token may be reached through this process.

The gateway itself refuses to be open beyond its machine. Behind a process that listens to the world its loopback address
would be no protection, so such a process asks once what the gateway does with a call that shows no token.
"""

from __future__ import annotations

import grpc
from csm.speech.v1 import speech_pb2
from csm_client.exceptions import SpeechError

from gateway.http.config import HttpSettings
from gateway.http.errors import HttpError
from gateway.http.upstream import Upstream, unary
from services.runtime import tls

_TIMEOUT_S = 10.0


class OpenGatewayGuard:
    """One for all requests."""

    def __init__(self, settings: HttpSettings, upstream: Upstream):
        """Raises: SettingError."""
        self._upstream = upstream
        self._is_safe = tls.is_loopback(settings.listen) or tls.NO_TOKENS in tls.left_open(settings.insecure)

    async def check(self) -> None:
        """Raises: HttpError while the gateway asks for no token and that is not allowed; SpeechError if it cannot say."""
        if self._is_safe:
            return
        try:
            await unary(self._upstream.speech.ListVoices, speech_pb2.ListVoicesRequest(), (), _TIMEOUT_S)
        except SpeechError as error:
            if error.code is not grpc.StatusCode.UNAUTHENTICATED:
                raise
            self._is_safe = True
            return
        text = (
            "the gateway asks for no token, and this server is reached from beyond its machine: "
            f"give the gateway CSM_TOKENS_FILE, or this server {tls.INSECURE}={tls.NO_TOKENS}"
        )
        raise HttpError(403, text, code="open_gateway")
