"""The async client: text in, watermarked speech out. Knows no model and no torch.

    async with SpeechClient("speech.example:50050") as client:
        stream = client.stream("Hello there.", speaker=0)
        async for pcm in stream:            # s16le samples at 24 kHz, unless asked otherwise
            play(pcm)
        print(stream.summary.time_to_first_audio.ToTimedelta())

Answers are the contract's own messages (csm.speech.v1); failures are the tree in `csm_client.exceptions`.
Calls join the caller's OpenTelemetry trace, if there is one.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable
from types import TracebackType
from typing import Any, Unpack

import grpc
from csm.speech.v1 import speech_pb2, speech_pb2_grpc

from csm_client import requests
from csm_client.channel import channel_credentials, channel_options, proxy_option
from csm_client.conversation import Conversation
from csm_client.exceptions import broken_contract, from_rpc_error
from csm_client.readiness import wait_ready
from csm_client.requests import Audio, SpeechOptions
from csm_client.tracing import SPEECH_SERVICE, CallSpan, Metadata
from csm_client.voices import NamedVoices


class SpeechStream:
    """A running utterance: iterate over it, once, for its audio bytes.

    Leaving the loop early (break, an exception, a cancelled task) cancels the call, all the way to
    the GPU. Inside `async with` that is so even when the loop never began or its iterator is kept.

    started: the first message (format, seed, trace id); None until it came.
    summary: the result of the request; None until the stream has ended well.
    """

    def __init__(self, open_call: Callable[[Metadata], Any]):
        self._open_call = open_call
        self._call: Any = None
        self.started: speech_pb2.SpeechStarted | None = None
        self.summary: speech_pb2.SpeechSummary | None = None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if self._call is not None:
            raise RuntimeError("a stream can be read only once")
        with CallSpan("StreamSynthesize") as span:
            self._call = call = self._open_call(span.metadata)
            try:
                async for response in call:
                    event = response.WhichOneof("event")
                    if event == "started":
                        self.started = response.started
                    elif self.started is None:
                        raise broken_contract("the stream did not begin with its format")
                    elif event == "audio":
                        yield response.audio.data
                    elif event == "finished":
                        self.summary = response.finished.summary
            except grpc.aio.AioRpcError as error:
                raise from_rpc_error(error) from error
            finally:
                call.cancel()
            if self.summary is None:
                raise broken_contract("the stream ended without its summary")

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
    credentials: for TLS, such as grpc.ssl_channel_credentials(...). Default: plaintext to this machine,
        elsewhere TLS that trusts the public authorities.
    token: the bearer token to show, or a function that gives it, asked at each call.
    insecure: plaintext to other machines too. Anyone on the way can read text, audio and token.
    timeout_s: for calls that name none themselves.
    health_service: only servers whose health check of this name says SERVING get calls; None checks none.
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
        self._credentials = channel_credentials(address, credentials, insecure)
        self.address, self._timeout_s, self._token = address, timeout_s, token
        options = [*channel_options(health_service, max_message_mib), *proxy_option(address)]
        if self._credentials is None:
            self._channel = grpc.aio.insecure_channel(address, options=options)
        else:
            self._channel = grpc.aio.secure_channel(address, self._credentials, options=options)
        self._speech = speech_pb2_grpc.SpeechServiceStub(self._channel)
        self.named_voices = NamedVoices(self._channel, self._run)

    @property
    def is_encrypted(self) -> bool:
        """Whether calls are in TLS."""
        return self._credentials is not None

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
        self, text: str, *, timeout_s: float | None = None, **options: Unpack[SpeechOptions]
    ) -> speech_pb2.SynthesizeResponse:
        """A whole utterance. Raises: SpeechError."""
        request = speech_pb2.SynthesizeRequest(
            utterance=requests.utterance(text, options), output=requests.output(options)
        )
        response: speech_pb2.SynthesizeResponse = await self._unary("Synthesize", request, timeout_s)
        return response

    def stream(self, text: str, *, timeout_s: float | None = None, **options: Unpack[SpeechOptions]) -> SpeechStream:
        """An utterance as it is made; the call begins with the first iteration. Iterating raises: SpeechError."""
        request = speech_pb2.StreamSynthesizeRequest(
            utterance=requests.utterance(text, options), output=requests.output(options)
        )
        return SpeechStream(lambda trace: self._call("StreamSynthesize", request, timeout_s, trace))

    def converse(self, **options: Unpack[SpeechOptions]) -> Conversation:
        """A conversation in one stream, without a deadline. Use it in `async with`."""
        configure = requests.configure(options)
        return Conversation(lambda trace: self._speech.Converse(metadata=self._metadata(trace)), configure)

    async def verify(self, audio: Audio, *, timeout_s: float | None = None) -> speech_pb2.VerifyWatermarkResponse:
        """Whether an audio file (its bytes, or its path) carries the deployment's watermark. Raises: SpeechError."""
        request = speech_pb2.VerifyWatermarkRequest(audio=requests.clip(audio))
        response: speech_pb2.VerifyWatermarkResponse = await self._unary("VerifyWatermark", request, timeout_s)
        return response

    async def verify_stream(
        self,
        pieces: AsyncIterable[bytes],
        *,
        speeds: bool = False,
        time_limit_s: float | None = None,
        on_progress: Callable[[speech_pb2.VerifyWatermarkProgress], object] = lambda progress: None,
        timeout_s: float | None = None,
    ) -> speech_pb2.VerifyWatermarkResponse:
        """Whether a file of any length, which comes in pieces, carries the deployment's watermark, and where.

        speeds: search audio that is up to 6 % faster or slower too. time_limit_s: of the search; the answer says
        whether it ended it. on_progress: called after each piece of about a minute.
        Raises: SpeechError.
        """
        search = requests.search(speeds, time_limit_s)

        async def messages() -> AsyncIterator[speech_pb2.VerifyWatermarkStreamRequest]:
            yield speech_pb2.VerifyWatermarkStreamRequest(start=speech_pb2.VerifyWatermarkStart(search=search))
            async for piece in pieces:
                yield speech_pb2.VerifyWatermarkStreamRequest(wav=piece)

        answer: speech_pb2.VerifyWatermarkResponse | None = None
        with CallSpan("VerifyWatermarkStream") as span:
            try:
                call = self._call("VerifyWatermarkStream", messages(), timeout_s, span.metadata)
                async for response in call:
                    if response.HasField("progress"):
                        on_progress(response.progress)
                    elif response.HasField("finished"):
                        answer = response.finished
            except grpc.aio.AioRpcError as error:
                raise from_rpc_error(error) from error
        if answer is None:
            raise broken_contract("the stream ended before its end was sent")
        return answer

    async def voices(self, *, timeout_s: float | None = None) -> speech_pb2.ListVoicesResponse:
        """The deployment's bundle, version, limits and voices. Raises: SpeechError."""
        request = speech_pb2.ListVoicesRequest()
        response: speech_pb2.ListVoicesResponse = await self._unary("ListVoices", request, timeout_s)
        return response

    async def _unary(self, method: str, request: Any, timeout_s: float | None) -> Any:
        return await self._run(self._speech, SPEECH_SERVICE, method, request, timeout_s)

    async def _run(self, stub: Any, service: str, method: str, request: Any, timeout_s: float | None) -> Any:
        with CallSpan(method, service) as span:
            try:
                start = getattr(stub, method)
                return await start(
                    request, timeout=timeout_s or self._timeout_s, metadata=self._metadata(span.metadata)
                )
            except grpc.aio.AioRpcError as error:
                raise from_rpc_error(error) from error

    def _call(self, method: str, request: Any, timeout_s: float | None, trace: Metadata) -> Any:
        start = getattr(self._speech, method)
        return start(request, timeout=timeout_s or self._timeout_s, metadata=self._metadata(trace))

    def _metadata(self, trace: Metadata) -> Metadata:
        token = self._token() if callable(self._token) else self._token
        return (*trace, ("authorization", f"Bearer {token}")) if token else trace
