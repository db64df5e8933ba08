"""`POST /v1/audio/speech`: the gateway's stream as an HTTP body, or as server-sent events.

The status line waits for the first audio: what fails before it has a status of its own, and what fails after it resets
the connection, since a body that ends properly counts as whole.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

import grpc
from csm.speech.v1 import speech_pb2
from csm_client.exceptions import broken_contract, from_rpc_error

from gateway.http.config import HttpSettings
from gateway.http.errors import HttpError
from gateway.http.exchange import Exchange, Header
from gateway.http.request import Wanted, parse
from gateway.http.summary import summary_fields
from gateway.http.upstream import Metadata, Upstream
from services.runtime import instruments

_RETRY_S = 1.0


class Speech:
    """Holds no state of a request."""

    def __init__(self, settings: HttpSettings, upstream: Upstream):
        self._settings, self._upstream = settings, upstream

    async def __call__(self, exchange: Exchange) -> None:
        """Raises: HttpError, SpeechError, CallerLeft."""
        body = await exchange.body(self._settings.max_body_kib * 1024, "body")
        wanted = parse(body, exchange.headers.get("content-type", ""))
        await exchange.unless_caller_leaves(self._answer(exchange, wanted, exchange.metadata()))

    async def _answer(self, exchange: Exchange, wanted: Wanted, metadata: Metadata) -> None:
        came_s = time.perf_counter()
        sink = _Events(exchange) if wanted.is_sse else _Body(exchange, wanted.format.media_type)
        started = speech_pb2.SpeechStarted()
        is_begun = False
        async with aclosing(self._responses(wanted.request, metadata)) as responses:
            async for response in responses:
                match response.WhichOneof("event"):
                    case "started":
                        started = response.started
                    case "audio":
                        if not is_begun:
                            instruments.http_first_audio.record(time.perf_counter() - came_s)
                            await sink.begin()
                            is_begun = True
                        await sink.audio(response.audio.data)
                    case "finished" if is_begun:
                        await sink.end(started, response.finished.summary)
                        return
        raise broken_contract("the stream ended without audio or without its summary")

    async def _responses(
        self, request: speech_pb2.StreamSynthesizeRequest, metadata: Metadata
    ) -> AsyncGenerator[speech_pb2.StreamSynthesizeResponse, None]:
        call = self._upstream.speech.StreamSynthesize(request, timeout=self._settings.timeout_s, metadata=metadata)
        try:
            try:
                async with asyncio.timeout(self._settings.queue_s):
                    response = await call.read()
            except TimeoutError:
                text = f"overloaded: the speech had not begun after {self._settings.queue_s:g} s"
                raise HttpError(429, text, code="rate_limit_exceeded", retry_after_s=_RETRY_S) from None
            while isinstance(response, speech_pb2.StreamSynthesizeResponse):  # else it is grpc.aio.EOF
                yield response
                response = await call.read()
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        finally:
            call.cancel()


class _Body:
    """Audio as it comes."""

    def __init__(self, exchange: Exchange, media_type: str):
        self._exchange, self._media_type = exchange, media_type

    async def begin(self) -> None:
        await self._exchange.start(200, _headers(self._media_type))

    async def audio(self, data: bytes) -> None:
        await self._exchange.write(data)

    async def end(self, started: speech_pb2.SpeechStarted, summary: speech_pb2.SpeechSummary) -> None:
        await self._exchange.write(b"", last=True)


class _Events:
    """Audio in events of OpenAI's types; the last one also has what the gateway says of the request."""

    def __init__(self, exchange: Exchange):
        self._exchange = exchange

    async def begin(self) -> None:
        await self._exchange.start(200, _headers("text/event-stream; charset=utf-8"))

    async def audio(self, data: bytes) -> None:
        event = {"type": "speech.audio.delta", "audio": base64.b64encode(data).decode()}
        await self._exchange.write(_event(event))

    async def end(self, started: speech_pb2.SpeechStarted, summary: speech_pb2.SpeechSummary) -> None:
        usage = {
            "input_tokens": summary.prompt_tokens,
            "output_tokens": summary.frames,
            "total_tokens": summary.prompt_tokens + summary.frames,
        }
        event = {"type": "speech.audio.done", "usage": usage, "csm": summary_fields(started, summary)}
        await self._exchange.write(_event(event), last=True)


def _event(fields: Mapping[str, object]) -> bytes:
    return f"data: {json.dumps(fields)}\n\n".encode()


def _headers(media_type: str) -> list[Header]:
    # A proxy that gathers a body before it passes it on would make a stream of it no more.
    return [
        (b"content-type", media_type.encode()),
        (b"cache-control", b"no-store"),
        (b"x-accel-buffering", b"no"),
    ]
