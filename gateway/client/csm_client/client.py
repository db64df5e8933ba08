"""The async client that callers import: text in, watermarked speech out. Knows no model and no torch.

    async with SpeechClient("speech.example:50050") as client:
        stream = client.stream("Hello there.", speaker=0)
        async for pcm in stream:            # s16le samples at 24 kHz, unless asked otherwise
            play(pcm)
        print(stream.summary.time_to_first_audio.ToTimedelta())

Answers are the contract's own messages (csm.speech.v1); failures are the tree in `csm_client.exceptions`.
Calls join the caller's OpenTelemetry trace, if there is one.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import grpc
from csm.common.v1 import common_pb2
from csm.speech.v1 import speech_pb2, speech_pb2_grpc

from csm_client.exceptions import ServerFault, from_rpc_error
from csm_client.readiness import wait_ready
from services.runtime.channels import FLOW_CONTROL, MIB
from services.runtime.tls import is_loopback
from services.runtime.tracing import TracedChannel

log = logging.getLogger(__name__)
Encoding = Literal["pcm_s16le", "pcm_f32le"]
Container = Literal["raw", "wav"]

_ENCODINGS = {
    "pcm_s16le": common_pb2.AUDIO_ENCODING_PCM_S16LE,
    "pcm_f32le": common_pb2.AUDIO_ENCODING_PCM_F32LE,
}
_CONTAINERS = {"raw": speech_pb2.CONTAINER_RAW, "wav": speech_pb2.CONTAINER_WAV}


@dataclass(frozen=True)
class ContextTurn:
    """One earlier turn of the conversation. audio: a WAV file's bytes, or its path."""

    speaker: int
    text: str
    audio: bytes | str | Path

    def to_proto(self) -> speech_pb2.ContextSegment:
        clip = common_pb2.AudioClip(wav=_wav(self.audio))
        segment = speech_pb2.ContextSegment(audio=clip)
        _fill(segment, speaker=self.speaker, text=self.text)
        return segment


class SpeechStream:
    """A running utterance: iterate over it, once, for its audio bytes.

    Leaving the loop early (break, an exception, a cancelled task) cancels the call, all the way to
    the GPU. Inside `async with` that is so even when the loop never began or its iterator is kept.

    started: the first message (format, seed, trace id); None until it came.
    summary: what came of the request; None until the stream has ended well.
    """

    def __init__(self, open_call: Callable[[], Any]):
        self._open_call, self._call = open_call, None
        self.started: speech_pb2.SpeechStarted | None = None
        self.summary: speech_pb2.SpeechSummary | None = None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if self._call is not None:
            raise RuntimeError("a stream can be read only once")
        self._call = call = self._open_call()
        try:
            async for response in call:
                event = response.WhichOneof("event")
                if event == "started":
                    self.started = response.started
                elif self.started is None:
                    raise _broken("the stream did not begin with its format")
                elif event == "audio":
                    yield response.audio.data
                elif event == "finished":
                    self.summary = response.finished.summary
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        finally:
            call.cancel()
        if self.summary is None:
            raise _broken("the stream ended without its summary")

    def cancel(self) -> None:
        """End the call now. Without effect on one that has ended."""
        if self._call is not None:
            self._call.cancel()

    async def __aenter__(self) -> SpeechStream:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.cancel()


class SpeechClient:
    """One channel to a deployment; safe to share between tasks. To be made while an event loop runs.

    address: `host:port`. A name with several addresses is balanced over all that are ready.
    credentials: for TLS, such as services.runtime.tls.channel_credentials. Default: plaintext to this machine,
        elsewhere TLS that trusts the public authorities.
    token: the bearer token to show, or a function that gives it, asked at each call.
    insecure: plaintext to other machines too. Whoever is on the way reads text, audio and token.
    timeout_s: for calls that name none themselves.
    health_service: only servers whose health check of this name says SERVING get calls; None asks nobody.
    max_message_mib: the longest whole answer; 64 MiB are six minutes of float32 audio at 48 kHz.

    UNAVAILABLE and RESOURCE_EXHAUSTED are tried again, twice, on the next server; never once a call has answered,
    nor when the server says that it has tried itself, or that a token's limit is reached.
    """

    def __init__(
        self,
        address: str,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        token: str | Callable[[], str] | None = None,
        insecure: bool = False,
        timeout_s: float = 120.0,
        health_service: str | None = "readiness",
        max_message_mib: int = 64,
    ):
        if credentials is None and not is_loopback(address):
            if insecure:
                log.warning("calls to %s are in plaintext, as was asked for", address)
            else:
                credentials = grpc.ssl_channel_credentials()
        self.address, self._timeout_s, self._credentials, self._token = address, timeout_s, credentials, token
        options = _channel_options(health_service, max_message_mib)
        if credentials is None:
            self._channel = TracedChannel(grpc.aio.insecure_channel(address, options=options))
        else:
            self._channel = TracedChannel(grpc.aio.secure_channel(address, credentials, options=options))
        self._speech = speech_pb2_grpc.SpeechServiceStub(self._channel)

    async def __aenter__(self) -> SpeechClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the channel; calls that still run are cancelled."""
        await self._channel.close()

    async def wait_ready(self, timeout_s: float = 30.0, *, service: str = "readiness") -> None:
        """Return as soon as the deployment says that it can serve. Raises: Unavailable after `timeout_s`."""
        await wait_ready(self.address, timeout_s, service=service, credentials=self._credentials)

    async def synthesize(
        self,
        text: str,
        *,
        speaker: int | None = None,
        context: Iterable[ContextTurn] = (),
        temperature: float | None = None,
        top_k: int | None = None,
        seed: int | None = None,
        max_audio_ms: int | None = None,
        sample_rate_hz: int | None = None,
        encoding: Encoding | None = None,
        container: Container | None = None,
        timeout_s: float | None = None,
    ) -> speech_pb2.SynthesizeResponse:
        """A whole utterance. What is None is left to the deployment. Raises: SpeechError."""
        request = speech_pb2.SynthesizeRequest(
            utterance=_utterance(text, speaker, context, temperature, top_k, seed, max_audio_ms),
            output=_output(sample_rate_hz, encoding, container),
        )
        return await self._unary(self._speech.Synthesize, request, timeout_s)

    def stream(
        self,
        text: str,
        *,
        speaker: int | None = None,
        context: Iterable[ContextTurn] = (),
        temperature: float | None = None,
        top_k: int | None = None,
        seed: int | None = None,
        max_audio_ms: int | None = None,
        sample_rate_hz: int | None = None,
        encoding: Encoding | None = None,
        container: Container | None = None,
        timeout_s: float | None = None,
    ) -> SpeechStream:
        """An utterance as it is made; the call begins with the first iteration. Iterating raises: SpeechError."""
        request = speech_pb2.StreamSynthesizeRequest(
            utterance=_utterance(text, speaker, context, temperature, top_k, seed, max_audio_ms),
            output=_output(sample_rate_hz, encoding, container),
        )
        return SpeechStream(lambda: self._call(self._speech.StreamSynthesize, request, timeout_s))

    async def verify(
        self, audio: bytes | str | Path, *, timeout_s: float | None = None
    ) -> speech_pb2.VerifyWatermarkResponse:
        """Whether a WAV (its bytes, or its path) carries the deployment's watermark. Raises: SpeechError."""
        request = speech_pb2.VerifyWatermarkRequest(audio=common_pb2.AudioClip(wav=_wav(audio)))
        return await self._unary(self._speech.VerifyWatermark, request, timeout_s)

    async def voices(self, *, timeout_s: float | None = None) -> speech_pb2.ListVoicesResponse:
        """The bundle that is served, and its voices. Raises: SpeechError."""
        return await self._unary(self._speech.ListVoices, speech_pb2.ListVoicesRequest(), timeout_s)

    def _call(self, method: Any, request: Any, timeout_s: float | None) -> Any:
        token = self._token() if callable(self._token) else self._token
        metadata = [("authorization", f"Bearer {token}")] if token else None
        return method(request, timeout=timeout_s or self._timeout_s, metadata=metadata)

    async def _unary(self, method: Any, request: Any, timeout_s: float | None) -> Any:
        try:
            return await self._call(method, request, timeout_s)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error


def _utterance(
    text: str,
    speaker: int | None,
    context: Iterable[ContextTurn],
    temperature: float | None,
    top_k: int | None,
    seed: int | None,
    max_audio_ms: int | None,
) -> speech_pb2.Utterance:
    utterance = speech_pb2.Utterance(context=[turn.to_proto() for turn in context])
    _fill(utterance, text=text, speaker=speaker, max_audio_ms=max_audio_ms)
    _fill(utterance.sampling, temperature=temperature, top_k=top_k, seed=seed)
    return utterance


def _output(sample_rate_hz: int | None, encoding: str | None, container: str | None) -> speech_pb2.OutputOptions:
    output = speech_pb2.OutputOptions(
        container=_named("container", container, _CONTAINERS), encoding=_named("encoding", encoding, _ENCODINGS)
    )
    _fill(output, sample_rate_hz=sample_rate_hz)
    return output


def _fill(message: Any, **values: Any) -> None:
    """Set the fields that have a value. Raises: ValueError naming the field whose type cannot hold it.

    Limits are the server's to tell; this is about numbers and texts that cannot be sent at all.
    """
    for name, value in values.items():
        if value is not None:
            try:
                setattr(message, name, value)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{name}: cannot be {value!r:.60}: {error}") from error


def _broken(text: str) -> ServerFault:
    return ServerFault(text, code=grpc.StatusCode.DATA_LOSS)


def _named(what: str, name: str | None, values: dict[str, Any]) -> Any:
    if name is not None and name not in values:
        raise ValueError(f"{what}: {name!r} is none of {', '.join(values)}")
    return values[name] if name is not None else None


def _wav(audio: bytes | str | Path) -> bytes:
    return audio if isinstance(audio, bytes) else Path(audio).read_bytes()


def _channel_options(health_service: str | None, max_message_mib: int) -> Sequence[tuple[str, Any]]:
    retry = {
        "maxAttempts": 3,
        "initialBackoff": "0.1s",
        "maxBackoff": "1s",
        "backoffMultiplier": 3,
        "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
    }
    service_config: dict[str, Any] = {
        "loadBalancingConfig": [{"round_robin": {}}],
        "methodConfig": [{"name": [{"service": "csm.speech.v1.SpeechService"}], "retryPolicy": retry}],
    }
    if health_service is not None:
        service_config["healthCheckConfig"] = {"serviceName": health_service}
    return [
        ("grpc.service_config", json.dumps(service_config)),
        # A request is tried again only while it fits in this buffer, and context audio is long: default 256 KiB.
        ("grpc.per_rpc_retry_buffer_size", 16 * MIB),
        ("grpc.max_receive_message_length", max_message_mib * MIB),
        # Two clients never share a connection: behind one port may be several processes.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2000),
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 5_000),
        *FLOW_CONTROL,
    ]
