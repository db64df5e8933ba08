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
from types import TracebackType
from typing import Any

import grpc
from csm.speech.v1 import speech_pb2

from csm_client import requests
from csm_client.exceptions import SpeechError, from_rpc_error
from csm_client.requests import Audio
from csm_client.tracing import CallSpan, Metadata

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

    def __init__(self, open_call: Callable[[Metadata], Any], configure: speech_pb2.ConverseConfigure):
        self._open_call, self._configure = open_call, configure
        self._span = CallSpan("Converse")
        self._call: Any = None
        self._sending = asyncio.Lock()
        self._begun = 0  # turns, as the server counts them
        self._is_writing = False
        self._finished = 0  # turns that have ended, as far as their events were read
        self.started: speech_pb2.ConverseStarted | None = None

    async def __aenter__(self) -> Conversation:
        self._call = self._open_call(self._span.__enter__().metadata)
        try:
            await self.configure(self._configure)
        except BaseException as error:
            await self.__aexit__(type(error), error, error.__traceback__)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._call.cancel()
        self._span.__exit__(kind, error, traceback)

    async def configure(self, configure: speech_pb2.ConverseConfigure) -> None:
        """Change what is set in `configure`, from the next turn on."""
        await self._send(speech_pb2.ConverseRequest(configure=configure))

    @property
    def turn(self) -> int | None:
        """Number of the turn that is going on: the first one that is not known to have ended, else the last one."""
        return min(self._finished, self._begun - 1) if self._begun else None

    @property
    def next_turn(self) -> int:
        """Number of the turn that the next text begins, once the one before is flushed or interrupted."""
        return self._begun

    async def append(self, text: str, *, turn: int | None = None) -> None:
        """More of the turn's text, cut anywhere. The first one begins a turn.

        turn: which one the text is for, `next_turn` as it was when the text was begun. Text for one that was
        interrupted meanwhile is left out, rather than begin another turn.
        """
        if turn is not None and turn < self._begun - self._is_writing:
            return
        if not self._is_writing or turn == self._begun:
            self._begun, self._is_writing = self._begun + 1, True
        await self._send(speech_pb2.ConverseRequest(append_text=speech_pb2.AppendText(text=text, turn=turn)))

    async def flush(self) -> None:
        """The turn's text is complete."""
        self._is_writing = False
        await self._send(speech_pb2.ConverseRequest(flush=speech_pb2.FlushTurn()))

    async def say(self, text: str) -> None:
        """A whole turn at once."""
        await self.append(text)
        await self.flush()

    async def interrupt(
        self, heard_s: float | None = None, *, turn: int | None = None, keep_later: bool = True
    ) -> None:
        """Stop speaking. heard_s: seconds of the turn's audio that were played; None: all that was sent.

        turn: which one; by default the one that is going on. An interrupt that comes when that one is over stops no
        other. keep_later: whether turns after it are spoken all the same; otherwise they were not heard.
        """
        number = self.turn if turn is None else turn
        interrupt = speech_pb2.InterruptTurn(turn=number, keep_later=keep_later and number is not None)
        if heard_s is not None:
            interrupt.heard.FromNanoseconds(round(max(0.0, heard_s) * 1e9))
        if not interrupt.keep_later or number == self._begun - 1:
            self._is_writing = False  # the next text begins another turn
        await self._send(speech_pb2.ConverseRequest(interrupt=interrupt))

    async def hear(self, text: str, audio: Audio, *, speaker: int | None = None) -> None:
        """What the other party said. audio: a WAV file's bytes, or its path."""
        clip = await asyncio.to_thread(requests.clip, audio)
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
                    if event == "turn_finished":
                        self._finished = max(self._finished, response.turn_finished.turn + 1)
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

    async def _failure(self) -> SpeechError:
        call = self._call
        return from_rpc_error(
            grpc.aio.AioRpcError(
                await call.code(), await call.initial_metadata(), await call.trailing_metadata(), await call.details()
            )
        )
