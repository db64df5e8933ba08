"""Other servers, or other doors of ours, under the same load: Riva's speech synthesis, OpenAI's speech endpoint.

Both are asked for 16-bit samples at 24 kHz. They say nothing of frames, so bytes are counted but held to no promise.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, Protocol

import grpc
from csm_client.exceptions import SpeechError, from_rpc_error

from gateway.cli.bench.caller import hear
from gateway.cli.bench.listener import Listener
from gateway.cli.bench.pcm import Pieces
from gateway.cli.bench.plan import Plan
from gateway.cli.bench.record import OK, Record
from gateway.riva import riva_common_pb2, riva_tts_pb2, riva_tts_pb2_grpc

RATE_HZ = 24_000
_NO_AUDIO = "NO_AUDIO"


class Peer(Protocol):
    """A server that speaks."""

    def stream(self, text: str, plan: Plan) -> AsyncIterator[bytes]:
        """The text's audio as it comes. Raises: PeerError, SpeechError."""

    async def close(self) -> None: ...


class PeerError(Exception):
    """status: for the report's table."""

    def __init__(self, status: str, text: str, retry_after_s: float | None = None):
        super().__init__(text)
        self.status, self.retry_after_s = status, retry_after_s


class RivaPeer:
    """`nvidia.riva.tts.RivaSpeechSynthesis` at host:port."""

    def __init__(self, address: str, credentials: grpc.ChannelCredentials | None, token: str | None):
        options = [("grpc.max_receive_message_length", -1)]
        self._channel = (
            grpc.aio.insecure_channel(address, options)
            if credentials is None
            else grpc.aio.secure_channel(address, credentials, options)
        )
        self._stub = riva_tts_pb2_grpc.RivaSpeechSynthesisStub(self._channel)
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()

    async def stream(self, text: str, plan: Plan) -> AsyncIterator[bytes]:
        request = riva_tts_pb2.SynthesizeSpeechRequest(
            text=text,
            language_code="en-US",
            encoding=riva_common_pb2.LINEAR_PCM,
            sample_rate_hz=RATE_HZ,
            voice_name=plan.peer_voice,
        )
        if plan.audio_s is not None:  # ours alone knows this
            request.custom_configuration["max_audio_ms"] = str(plan.max_audio_ms(text))
        call = self._stub.SynthesizeOnline(iter([request]), timeout=plan.timeout_s, metadata=self._metadata)
        try:
            async for response in call:
                yield response.audio
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        finally:
            call.cancel()

    async def close(self) -> None:
        await self._channel.close()


class OpenAIPeer:
    """`POST /v1/audio/speech` under a URL such as http://host:8000."""

    def __init__(self, url: str, token: str | None):
        """Raises: ImportError without httpx."""
        import httpx

        headers = {"authorization": f"Bearer {token}"} if token else {}
        limits = httpx.Limits(max_connections=None)
        self._errors = httpx.HTTPError
        self._http = httpx.AsyncClient(base_url=url, headers=headers, limits=limits, trust_env=False)

    async def stream(self, text: str, plan: Plan) -> AsyncIterator[bytes]:
        body: dict[str, Any] = {
            "model": plan.peer_model,
            "input": text,
            "voice": plan.peer_voice or "alloy",
            "response_format": "pcm",
        }
        if plan.audio_s is not None:  # ours alone knows this
            body["max_audio_ms"] = plan.max_audio_ms(text)
        try:
            async with self._http.stream("POST", "/v1/audio/speech", json=body, timeout=plan.timeout_s) as response:
                if response.status_code != 200:
                    wait = response.headers.get("retry-after", "")
                    text = (await response.aread()).decode(errors="replace")
                    raise PeerError(f"HTTP_{response.status_code}", text, float(wait) if wait.isdigit() else None)
                async for data in response.aiter_raw():
                    yield data
        except self._errors as error:
            raise PeerError(type(error).__name__, str(error)) from error

    async def close(self) -> None:
        await self._http.aclose()


async def speak(peer: Peer, plan: Plan, text: str, record: Record, clock: Callable[[], float]) -> Listener:
    """As caller.speak does with our own client."""
    listener, pieces = Listener(plan.buffer_s), Pieces()
    try:
        async with aclosing(peer.stream(text, plan)) as stream:  # type: ignore[type-var]
            async for data in stream:
                if not (pcm := pieces.whole(data)):
                    continue
                record.bytes += len(pcm)
                hear(listener, pcm, RATE_HZ, clock())
        record.status = OK if record.bytes else _NO_AUDIO
    except PeerError as error:
        record.status, record.problem, record.retry_after_s = error.status, str(error), error.retry_after_s
    except SpeechError as error:
        record.status, record.problem = error.code.name, str(error)
    finally:
        record.note(listener, clock())
    return listener
