"""A conversation in one stream: words go in as they come, speech comes out, the listener may interrupt.

async with client.converse(speaker=0) as talk:
    await talk.append("Hello, ")
    await talk.append("how are you?")
    await talk.flush()
    async for event in talk:
        match event:
            case speech_pb2.TurnAudio():
                play(event.data)
            case speech_pb2.TurnFinished():
                break
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
from csm.common.v1 import common_pb2
from csm.speech.v1 import speech_pb2

from csm_client.exceptions import from_rpc_error

ConverseEvent = (
    speech_pb2.TurnStarted
    | speech_pb2.SpokenUnit
    | speech_pb2.TurnAudio
    | speech_pb2.TurnFinished
    | speech_pb2.ConverseWarning
)


class Conversation:
    """A running Converse call. Use it in `async with`; leaving the block ends the call.

    Iterate over it for its events, in one task; send from any task. `started` is the first message, once it came.
    Sending and iterating raise: SpeechError.
    """

    def __init__(self, open_call: Callable[[], Any], configure: speech_pb2.ConverseConfigure):
        self._open_call, self._configure = open_call, configure
        self._call: Any = None
        self._sending = asyncio.Lock()
        self.started: speech_pb2.ConverseStarted | None = None

    async def __aenter__(self) -> Conversation:
        self._call = self._open_call()
        await self.configure(self._configure)
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._call is not None:
            self._call.cancel()

    async def configure(self, configure: speech_pb2.ConverseConfigure) -> None:
        """Change what is set in `configure`, from the next turn on."""
        await self._send(speech_pb2.ConverseRequest(configure=configure))

    async def append(self, text: str) -> None:
        """More of the turn's text, cut anywhere. The first one begins a turn."""
        await self._send(speech_pb2.ConverseRequest(append_text=speech_pb2.AppendText(text=text)))

    async def flush(self) -> None:
        """The turn's text is complete."""
        await self._send(speech_pb2.ConverseRequest(flush=speech_pb2.FlushTurn()))

    async def say(self, text: str) -> None:
        """A whole turn at once."""
        await self.append(text)
        await self.flush()

    async def interrupt(self, heard_s: float | None = None, *, turn: int | None = None) -> None:
        """Stop speaking. heard_s: seconds of the turn's audio that were played; None: all that was sent."""
        interrupt = speech_pb2.InterruptTurn(turn=turn)
        if heard_s is not None:
            interrupt.heard.FromNanoseconds(round(max(0.0, heard_s) * 1e9))
        await self._send(speech_pb2.ConverseRequest(interrupt=interrupt))

    async def hear(self, text: str, audio: bytes | str | Path, *, speaker: int | None = None) -> None:
        """What the other party said. audio: a WAV file's bytes, or its path."""
        wav = audio if isinstance(audio, bytes) else await asyncio.to_thread(Path(audio).read_bytes)
        clip = common_pb2.AudioClip(wav=wav)
        turn = speech_pb2.UserTurn(speaker=speaker, text=text, audio=clip)
        await self._send(speech_pb2.ConverseRequest(user_turn=turn))

    async def end(self) -> None:
        """Send nothing more. Turns that were begun are spoken to their end, then the events end."""
        async with self._sending:
            await self._call.done_writing()

    async def __aiter__(self) -> AsyncIterator[ConverseEvent]:
        try:
            while (response := await self._call.read()) is not grpc.aio.EOF:
                event = response.WhichOneof("event")
                if event == "started":
                    self.started = response.started
                elif event is not None:
                    yield getattr(response, event)
            if await self._call.code() is not grpc.StatusCode.OK:
                raise await self._failure()
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error

    async def _send(self, request: speech_pb2.ConverseRequest) -> None:
        async with self._sending:
            try:
                await self._call.write(request)
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                # A write says only that the call is over; the call's status says why.
                raise await self._failure() from None

    async def _failure(self) -> Exception:
        call = self._call
        return from_rpc_error(
            grpc.aio.AioRpcError(
                await call.code(), await call.initial_metadata(), await call.trailing_metadata(), await call.details()
            )
        )
