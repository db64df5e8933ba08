"""What comes in from the caller of a conversation: checked, bounded, and in order."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from csm.speech.v1 import speech_pb2

from gateway.output import Output
from gateway.speech.converse_items import ChosenVoice, Configuration, Interrupt, Item, OwnTurn, TheirTurn
from gateway.speech.deployment import Deployment
from gateway.speech.prompt_tokenizer import Heard, PromptTokenizer
from services.runtime.errors import InvalidArgument, ResourceExhausted
from services.runtime.request_reader import MIB

# Of one conversation.
_MAX_WAITING = 64  # turns and changes that wait to be taken up
_MAX_INTERRUPTS = 16
_TURNS_KEPT = 64  # that an interrupt may still name

T = TypeVar("T")


class Inbox:
    """`items` and `interrupts` wait to be taken; `changed` is set when there may be something new.

    speaking: the turn that is being spoken, as the taker says. turns: the last ones, by number. ended: the caller sends
    nothing more. error: what is wrong with a message.
    """

    def __init__(self, deployment: Deployment, tokenizer: Callable[[speech_pb2.ConverseConfigure], PromptTokenizer]):
        """tokenizer: makes one for a configuration."""
        self._deployment, self._tokenizer = deployment, tokenizer
        self._options = speech_pb2.ConverseConfigure()
        self._configuration: Configuration | None = None  # of the turns that are being written
        self._writing: OwnTurn | None = None  # takes the text that comes
        self._next_turn = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self.items: deque[Item] = deque()
        self.interrupts: deque[Interrupt] = deque()
        self.speaking: OwnTurn | None = None
        self.turns: dict[int, OwnTurn] = {}
        self.changed = asyncio.Event()
        self.ended = False
        self.error: Exception | None = None

    async def read(self, requests: AsyncIterator[speech_pb2.ConverseRequest]) -> None:
        """Take all that comes, until it ends or a message is wrong. Waits for nothing else."""
        try:
            async for request in requests:
                self._take(request)
                self.changed.set()
            if self._writing is not None:
                self._writing.text.flush()
            self.ended = True
        except Exception as error:
            self.error = error
        self.changed.set()

    async def close(self) -> None:
        """Cancel what is still being encoded."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _take(self, request: speech_pb2.ConverseRequest) -> None:
        match request.WhichOneof("request"):
            case "configure":
                self.configure(request.configure)
            case "append_text":
                self._append(request.append_text)
            case "flush":
                if self._writing is not None:
                    self._writing.text.flush()
                    self._writing = None
            case "interrupt":
                self._interrupt(request.interrupt)
            case "user_turn":
                self._hear(request.user_turn)
            case _:
                raise InvalidArgument("request", "must be set")

    def configure(self, configure: speech_pb2.ConverseConfigure) -> Configuration:
        """Enqueue a change of what was set before. Raises: CallError."""
        options = speech_pb2.ConverseConfigure()
        options.CopyFrom(self._options)
        options.MergeFrom(configure)
        settings = self._deployment.settings
        if len(configure.context) > settings.max_context_turns:
            raise InvalidArgument(
                "configure.context",
                f"has {len(configure.context)} turns, at most {settings.max_context_turns} are taken",
            )
        if options.HasField("max_audio_ms") and options.max_audio_ms < 1:
            raise InvalidArgument("configure.max_audio_ms", f"must be 1 or more, not {options.max_audio_ms}")
        try:
            Output(options.output, self._deployment.rules.sample_rate_hz)
        except InvalidArgument as error:
            raise InvalidArgument(f"configure.{error.field}", error.description) from None
        if configure.voice and not configure.HasField("speaker"):
            options.ClearField("speaker")
        elif configure.HasField("speaker") and not configure.voice:
            options.voice = ""
        context = list(configure.context)
        del options.context[:]
        is_first = self._configuration is None
        voice = self._spawn(self._choose_voice(options, context if context or is_first else None))
        self._options = options
        self._configuration = Configuration(options, voice, starts_over=bool(context))
        self._enqueue(self._configuration)
        return self._configuration

    async def _choose_voice(
        self, options: speech_pb2.ConverseConfigure, context: list[speech_pb2.ContextSegment] | None
    ) -> ChosenVoice:
        choice = await self._deployment.voices.choose(
            options.voice,
            options.speaker if options.HasField("speaker") else None,
            self._deployment.access.owner(),
            lambda: self._tokenizer(speech_pb2.ConverseConfigure()),
            "configure",
        )
        if context is None:
            return ChosenVoice(choice.speaker, choice.prompt, None)
        turns = [
            Heard(turn.speaker, turn.text, turn.audio, f"configure.context[{index}]")
            for index, turn in enumerate(context)
        ]
        return ChosenVoice(choice.speaker, choice.prompt, await self._tokenizer(options).heard(turns))

    def _append(self, message: speech_pb2.AppendText) -> None:
        text, own = message.text, self._writing
        if message.HasField("turn"):
            if not 0 <= message.turn <= self._next_turn:
                raise InvalidArgument(
                    "append_text.turn", f"must be at most {self._next_turn}, the next turn, not {message.turn}"
                )
            if own is not None and message.turn == self._next_turn:
                own.text.flush()
                own = None
            elif (own is None and message.turn < self._next_turn) or (own is not None and own.number != message.turn):
                return
        if own is not None and own.over:
            return
        most = self._deployment.settings.max_text_chars
        waiting = sum(item.text.pending for item in self.items if isinstance(item, OwnTurn))
        waiting += self.speaking.text.pending if self.speaking is not None else 0
        if waiting + len(text) > most:
            raise InvalidArgument(
                "append_text.text", f"makes {waiting + len(text)} characters wait to be spoken, at most {most} may"
            )
        if own is None:
            own = self._begin()
        try:
            self._deployment.access.charge(len(text), "append_text.text")
        except ResourceExhausted as error:
            own.refusal, own.over = error, True
            own.text.flush()
            return
        own.text.append(text)

    def _begin(self) -> OwnTurn:
        assert self._configuration is not None
        own = OwnTurn(self._next_turn, self._deployment.rules.text_source(), self._configuration)
        self.turns[own.number] = own
        self.turns.pop(own.number - _TURNS_KEPT, None)
        self._next_turn += 1
        self._enqueue(own)
        self._writing = own
        return own

    def _interrupt(self, message: speech_pb2.InterruptTurn) -> None:
        number = message.turn if message.HasField("turn") else None
        if number is not None and number not in self.turns:
            raise InvalidArgument(
                "interrupt.turn",
                f"must be one of the last turns, {min(self.turns, default=0)} to {self._next_turn - 1}, not {number}",
            )
        if message.keep_later and number is None:
            raise InvalidArgument("interrupt.keep_later", "must go with interrupt.turn")
        heard_s = message.heard.ToNanoseconds() / 1e9 if message.HasField("heard") else None
        if heard_s is not None and heard_s < 0:
            raise InvalidArgument("interrupt.heard", f"must not be negative, and is {heard_s:g} s")
        named = None if number is None else self.turns[number]
        stopped = (lambda own: own is named) if message.keep_later else (lambda own: True)
        for item in self.items:
            if isinstance(item, OwnTurn) and stopped(item):
                item.dropped = True
                item.text.flush()
        if self._writing is not None and stopped(self._writing):
            self._writing = None
        if self.speaking is not None and stopped(self.speaking):
            self.speaking.text.flush()
        self._enqueue_interrupt(Interrupt(heard_s, named, message.keep_later))

    def _enqueue_interrupt(self, interrupt: Interrupt) -> None:
        if len(self.interrupts) >= _MAX_INTERRUPTS:
            for index, waiting in enumerate(self.interrupts):
                if (merged := waiting.merged(interrupt)) is not None:
                    self.interrupts[index] = merged
                    return
            text = f"interrupt: {_MAX_INTERRUPTS} of them wait already"
            raise ResourceExhausted(text, 1.0, retryable=False)
        self.interrupts.append(interrupt)

    def _hear(self, turn: speech_pb2.UserTurn) -> None:
        size = turn.audio.ByteSize()
        waiting = size + sum(item.size for item in self.items if isinstance(item, TheirTurn))
        most = self._deployment.settings.max_message_mib * MIB
        if waiting > most:
            text = f"user_turn.audio: {waiting} bytes of clips would wait to be heard, at most {most} may"
            raise ResourceExhausted(text, 1.0, retryable=False)
        heard = Heard(turn.speaker if turn.HasField("speaker") else 1, turn.text, turn.audio, "user_turn")
        self._enqueue(TheirTurn(self._spawn(self._tokenizer(self._options).heard([heard])), size))

    def _enqueue(self, item: Item) -> None:
        self.items.append(item)
        if len(self.items) > _MAX_WAITING:
            text = f"more than {_MAX_WAITING} turns wait to be spoken or heard"
            raise ResourceExhausted(text, 1.0, retryable=False)

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run `work`; its failure is raised where the item that waits for it is taken."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_done)
        return task

    def _on_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # it is raised where the item is taken, if it ever is
        self.changed.set()
