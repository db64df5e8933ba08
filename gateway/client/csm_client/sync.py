"""The client for programs without an event loop; threads may share it.

with SyncSpeechClient("speech.example:50050") as client:
    stream = client.stream("Hello there.", speaker=0)
    for pcm in stream:
        play(pcm)
    print(stream.summary.seed)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Unpack

import grpc
from csm.speech.v1 import speech_pb2, speech_pb2_grpc

from csm_client import requests
from csm_client.channel import channel_credentials, channel_options, proxy_option
from csm_client.exceptions import broken_contract, from_rpc_error
from csm_client.readiness import wait_ready_sync
from csm_client.requests import Audio, SpeechOptions
from csm_client.tracing import CallSpan, Metadata


class SyncSpeechStream:
    """A running utterance: iterate over it, once, for its audio bytes.

    Leaving the loop early cancels the call. Inside `with` that is so even when the iterator is kept.

    started: the first message (format, seed, trace id); None until it came.
    summary: the result of the request; None until the stream has ended well.
    """

    def __init__(self, open_call: Callable[[Metadata], Any]):
        self._open_call = open_call
        self._call: Any = None
        self.started: speech_pb2.SpeechStarted | None = None
        self.summary: speech_pb2.SpeechSummary | None = None

    def __iter__(self) -> Iterator[bytes]:
        if self._call is not None:
            raise RuntimeError("a stream can be read only once")
        with CallSpan("StreamSynthesize") as span:
            self._call = call = self._open_call(span.metadata)
            try:
                for response in call:
                    event = response.WhichOneof("event")
                    if event == "started":
                        self.started = response.started
                    elif self.started is None:
                        raise broken_contract("the stream did not begin with its format")
                    elif event == "audio":
                        yield response.audio.data
                    elif event == "finished":
                        self.summary = response.finished.summary
            except grpc.RpcError as error:
                raise from_rpc_error(error) from error
            finally:
                call.cancel()
            if self.summary is None:
                raise broken_contract("the stream ended without its summary")

    def cancel(self) -> None:
        """End the call now, from any thread. Without effect on one that has ended."""
        if self._call is not None:
            self._call.cancel()

    def __enter__(self) -> SyncSpeechStream:
        return self

    def __exit__(self, *exc: object) -> None:
        self.cancel()


class SyncSpeechClient:
    """One channel to a deployment. Arguments, retries and errors are those of `csm_client.SpeechClient`."""

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
            self._channel = grpc.insecure_channel(address, options=options)
        else:
            self._channel = grpc.secure_channel(address, self._credentials, options=options)
        self._speech = speech_pb2_grpc.SpeechServiceStub(self._channel)

    def __enter__(self) -> SyncSpeechClient:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the channel; calls that still run are cancelled."""
        self._channel.close()

    def wait_ready(self, timeout_s: float = 30.0, *, service: str = "readiness") -> None:
        """Return as soon as the deployment says that it can serve. Raises: Unavailable after `timeout_s`."""
        wait_ready_sync(self.address, timeout_s, service=service, credentials=self._credentials)

    def synthesize(
        self, text: str, *, timeout_s: float | None = None, **options: Unpack[SpeechOptions]
    ) -> speech_pb2.SynthesizeResponse:
        """A whole utterance. Raises: SpeechError."""
        request = speech_pb2.SynthesizeRequest(
            utterance=requests.utterance(text, options), output=requests.output(options)
        )
        response: speech_pb2.SynthesizeResponse = self._unary("Synthesize", request, timeout_s)
        return response

    def stream(
        self, text: str, *, timeout_s: float | None = None, **options: Unpack[SpeechOptions]
    ) -> SyncSpeechStream:
        """An utterance as it is made; the call begins with the first iteration. Iterating raises: SpeechError."""
        request = speech_pb2.StreamSynthesizeRequest(
            utterance=requests.utterance(text, options), output=requests.output(options)
        )
        return SyncSpeechStream(lambda trace: self._call("StreamSynthesize", request, timeout_s, trace))

    def verify(self, audio: Audio, *, timeout_s: float | None = None) -> speech_pb2.VerifyWatermarkResponse:
        """Whether a WAV (its bytes, or its path) carries the deployment's watermark. Raises: SpeechError."""
        request = speech_pb2.VerifyWatermarkRequest(audio=requests.clip(audio))
        response: speech_pb2.VerifyWatermarkResponse = self._unary("VerifyWatermark", request, timeout_s)
        return response

    def verify_stream(
        self,
        pieces: Iterable[bytes],
        *,
        speeds: bool = False,
        time_limit_s: float | None = None,
        on_progress: Callable[[speech_pb2.VerifyWatermarkProgress], object] = lambda progress: None,
        timeout_s: float | None = None,
    ) -> speech_pb2.VerifyWatermarkResponse:
        """Whether a WAV of any length, which comes in pieces, carries the mark; as SpeechClient.verify_stream."""
        search = requests.search(speeds, time_limit_s)

        def messages() -> Iterator[speech_pb2.VerifyWatermarkStreamRequest]:
            yield speech_pb2.VerifyWatermarkStreamRequest(start=speech_pb2.VerifyWatermarkStart(search=search))
            for piece in pieces:
                yield speech_pb2.VerifyWatermarkStreamRequest(wav=piece)

        answer: speech_pb2.VerifyWatermarkResponse | None = None
        with CallSpan("VerifyWatermarkStream") as span:
            try:
                for response in self._call("VerifyWatermarkStream", messages(), timeout_s, span.metadata):
                    if response.HasField("progress"):
                        on_progress(response.progress)
                    elif response.HasField("finished"):
                        answer = response.finished
            except grpc.RpcError as error:
                raise from_rpc_error(error) from error
        if answer is None:
            raise broken_contract("the stream ended before its end was sent")
        return answer

    def voices(self, *, timeout_s: float | None = None) -> speech_pb2.ListVoicesResponse:
        """The deployment's bundle, version, limits and voices. Raises: SpeechError."""
        request = speech_pb2.ListVoicesRequest()
        response: speech_pb2.ListVoicesResponse = self._unary("ListVoices", request, timeout_s)
        return response

    def _unary(self, method: str, request: Any, timeout_s: float | None) -> Any:
        with CallSpan(method) as span:
            try:
                return self._call(method, request, timeout_s, span.metadata)
            except grpc.RpcError as error:
                raise from_rpc_error(error) from error

    def _call(self, method: str, request: Any, timeout_s: float | None, trace: Metadata) -> Any:
        token = self._token() if callable(self._token) else self._token
        metadata = (*trace, ("authorization", f"Bearer {token}")) if token else trace
        start = getattr(self._speech, method)
        return start(request, timeout=timeout_s or self._timeout_s, metadata=metadata)
