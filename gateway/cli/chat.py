"""A conversation at the command line: text goes in as it comes, speech goes to a file or a player."""

from __future__ import annotations

import asyncio
import shlex
import signal
import sys
import time
from collections.abc import AsyncIterator

from csm.common.v1 import common_pb2
from csm.speech.v1 import speech_pb2
from csm_client import Conversation
from rich.console import Console

from gateway.cli.options import input_bytes
from gateway.cli.player import Player
from gateway.cli.say import Sink
from gateway.cli.terminal import plain_line

RATE_HZ = 24_000


class Chat:
    """One conversation between standard input and a sink.

    lines: each line is a turn, as when a person types; otherwise all of the input is one turn, spoken as it comes.
    """

    def __init__(self, conversation: Conversation, sink: Sink, out: Console, *, lines: bool):
        self._conversation, self._sink, self._out, self._lines = conversation, sink, out, lines
        self._open_turns = 0
        self._turn = -1  # the one whose audio comes
        self._stopped_turn = -1  # whose audio, still on its way, is not to be played any more
        self._audio_since: float | None = None  # when the turn's first audio came
        self._sent_s = 0.0

    async def run(self) -> None:
        """Until the input ends and all is said. Raises: SpeechError, OSError."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        loop.add_signal_handler(signal.SIGINT, lambda: self._on_interrupt(task))
        talking = asyncio.create_task(self._talk())
        try:
            async for event in self._conversation:
                await self._on_event(event)
            await talking
            await self._sink.finish(RATE_HZ, 0)
        finally:
            loop.remove_signal_handler(signal.SIGINT)
            talking.cancel()
            if isinstance(self._sink, Player):
                await self._sink.stop()

    def _on_interrupt(self, task: asyncio.Task[None]) -> None:
        """Ctrl-C stops the turn that speaks; without one it ends the conversation."""
        if self._open_turns or self._still_playing():
            self._interrupting = asyncio.ensure_future(self._interrupt())
        else:
            task.cancel()

    def _still_playing(self) -> bool:
        return isinstance(self._sink, Player) and self._heard_s() < self._sent_s

    def _heard_s(self) -> float:
        """What a listener who plays from the first audio on has heard of the turn."""
        return 0.0 if self._audio_since is None else min(self._sent_s, time.monotonic() - self._audio_since)

    async def _interrupt(self) -> None:
        """Stop the turn that is heard; lines that were typed after it are spoken."""
        heard_s, turn = None, self._conversation.turn
        if isinstance(self._sink, Player) and self._still_playing():
            heard_s, turn = self._heard_s(), self._turn
            await self._sink.stop()
        self._stopped_turn = max(self._stopped_turn, -1 if turn is None else turn)
        await self._conversation.interrupt(heard_s, turn=turn)

    async def _talk(self) -> None:
        try:
            await self._send_input()
        except (OSError, ValueError):  # the input cannot be read: the events end, and `run` raises this
            await self._conversation.end()
            raise
        await self._conversation.end()

    async def _send_input(self) -> None:
        begun = False
        async for text in _input(self._lines):
            if self._lines and text.startswith("/"):
                await self._command(text)
                continue
            if self._lines and not text.strip():
                continue
            if self._lines or not begun:
                self._open_turns += 1
                begun = True
            await self._conversation.append(text)
            if self._lines:
                await self._conversation.flush()

    async def _command(self, line: str) -> None:
        try:
            words = shlex.split(line)
        except ValueError as error:
            words = [f"{line}: {error}"]
        match words:
            case ["/say", file, text]:
                try:
                    clip = await asyncio.to_thread(input_bytes, file)
                except OSError as error:
                    self._out.print(plain_line(f"{file}: {error.strerror or error}"))
                    return
                await self._conversation.hear(text, clip)
                self._out.print(plain_line(f"heard: {text}"))
            case ["/interrupt"]:
                await self._interrupt()
            case _:
                self._out.print('/say FILE "words" is the other party; /interrupt or Ctrl-C stops a turn')

    async def _on_event(self, event: object) -> None:
        match event:
            case speech_pb2.TurnStarted():
                self._turn, self._audio_since, self._sent_s = event.turn, None, 0.0
            case speech_pb2.SpokenUnit():
                self._out.print(plain_line(f"[{event.first_sample / RATE_HZ:6.2f} s] {event.text.strip()}"))
            case speech_pb2.TurnAudio() if event.turn > self._stopped_turn or not isinstance(self._sink, Player):
                self._audio_since = self._audio_since or time.monotonic()
                self._sent_s += len(event.data) / 2 / RATE_HZ
                await self._sink.write(event.data, RATE_HZ)
            case speech_pb2.TurnFinished():
                self._open_turns = max(0, self._open_turns - 1)
                self._out.print(plain_line(_described(event)))
            case speech_pb2.ConverseWarning():
                self._out.print(plain_line(f"({event.message})"))


def _described(finished: speech_pb2.TurnFinished) -> str:
    heard_s = finished.heard.ToMilliseconds() / 1000
    if finished.finish_reason == common_pb2.FINISH_REASON_INTERRUPTED:
        return f"interrupted after {heard_s:.2f} s: {finished.heard_text!r}"
    reason = common_pb2.FinishReason.Name(finished.finish_reason).removeprefix("FINISH_REASON_")
    first_ms = finished.summary.time_to_first_audio.ToMilliseconds()
    return f"{heard_s:.2f} s of speech, {reason}, first audio after {first_ms} ms"


async def _input(lines: bool) -> AsyncIterator[str]:
    """Standard input as text: line by line, or whatever is there, as soon as it is."""
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin.buffer
    )
    rest = b""
    try:
        while data := await (reader.readline() if lines else reader.read(4096)):
            text, rest = _whole_characters(rest + data)
            if text:
                yield text.rstrip("\r\n") if lines else text
    finally:
        transport.close()


def _whole_characters(data: bytes) -> tuple[str, bytes]:
    """Text of `data`, and the bytes of a character that is not whole yet."""
    try:
        return data.decode(), b""
    except UnicodeDecodeError as error:
        if len(data) - error.start < 4 and error.reason == "unexpected end of data":
            return data[: error.start].decode(), data[error.start :]
        raise OSError(f"standard input: not UTF-8 text (byte {data[error.start]:#04x})") from None
