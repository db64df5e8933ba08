"""SpeechService.Converse: one conversation, from its first message to its last."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import grpc
from csm.common.v1 import common_pb2
from csm.speech.v1 import speech_pb2

from gateway.speech import converse_events
from gateway.speech.context import Context, Segment
from gateway.speech.converse_items import Configuration, Interrupt, Item, OwnTurn, TheirTurn
from gateway.speech.deadline import Deadline
from gateway.speech.deployment import Deployment
from gateway.speech.inbox import Inbox
from gateway.speech.interruptions import Interruptions
from gateway.speech.prompt_tokenizer import ENCODINGS_AT_ONCE, PromptTokenizer
from gateway.speech.spoken_turn import Responses, SpokenTurn, idle
from gateway.speech.summary import count_finish
from gateway.speech.trace_id import trace_id
from services.runtime.errors import NOTHING_SPEAKABLE, CallError, InvalidArgument, UnavailableError


class Conversation:
    """`responses` may be iterated once; closing it ends everything that runs."""

    def __init__(self, deployment: Deployment, call: grpc.aio.ServicerContext):
        self._deployment, self._call = deployment, call
        self._encodings = asyncio.Semaphore(ENCODINGS_AT_ONCE)
        self._inbox = Inbox(deployment, self._tokenizer)
        self._context = Context()
        self._interruptions = Interruptions(deployment.rules, self._context, self._inbox.turns)
        self._speaker = 0
        self._heard: list[Segment] = []  # of the voice prompt, what the caller gave
        self._last: OwnTurn | None = None  # the last turn that was heard or interrupted
        self._key = secrets.token_hex(8)  # keeps its calls on the replica that has its prompt

    async def responses(
        self, requests: AsyncIterator[speech_pb2.ConverseRequest]
    ) -> AsyncGenerator[speech_pb2.ConverseResponse, None]:
        """Raises: CallError."""
        first = await anext(requests, None)
        if first is None or first.WhichOneof("request") != "configure":
            raise InvalidArgument("configure", "must be the first message")
        tasks: list[asyncio.Task[None]] = []
        try:
            await self._inbox.configure(first.configure).voice
            yield speech_pb2.ConverseResponse(
                started=speech_pb2.ConverseStarted(bundle=self._deployment.stages.identity, trace_id=trace_id())
            )
            tasks = [asyncio.create_task(self._inbox.read(requests)), asyncio.create_task(self._watch_drain())]
            async with aclosing(self._run()) as responses:
                async for response in responses:
                    yield response
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._inbox.close()

    async def _watch_drain(self) -> None:
        await self._deployment.draining.wait()
        self._inbox.changed.set()

    async def _run(self) -> Responses:
        inbox, idle_s = self._inbox, self._deployment.settings.conversation_idle_s
        while True:
            if inbox.error is not None:
                raise inbox.error
            if inbox.interrupts:
                # No turn is being generated, but one may still be playing.
                for response in await self._interrupt(inbox.interrupts.popleft()):
                    yield response
            elif self._deployment.draining.is_set():
                yield converse_events.warning("GOING_AWAY", "the server is stopping: open another conversation")
                if any(isinstance(item, OwnTurn) and not item.dropped for item in inbox.items):
                    raise UnavailableError("the server is stopping before the next turn", reason="GOING_AWAY")
                return
            elif inbox.items and inbox.items[0].is_ready:
                async with aclosing(self._take(inbox.items.popleft())) as responses:
                    async for response in responses:
                        yield response
            elif inbox.ended and not inbox.items:
                return
            else:
                inbox.changed.clear()
                try:
                    async with asyncio.timeout(idle_s):
                        await inbox.changed.wait()
                except TimeoutError:
                    raise idle(idle_s) from None

    async def _take(self, item: Item) -> Responses:
        match item:
            case TheirTurn():
                for response in self._hear(item):
                    yield response
            case Configuration():
                self._apply(item)
            case OwnTurn():
                async with aclosing(self._own(item)) as responses:
                    async for response in responses:
                        yield response

    async def _own(self, own: OwnTurn) -> Responses:
        if own.dropped or own.refusal is not None:
            yield self._unspoken(own)
        else:
            async with aclosing(self._speak(own)) as responses:
                async for response in responses:
                    yield response
        own.text.drop()  # an interrupt may still name the turn, which must not keep its text

    async def _interrupt(self, interrupt: Interrupt) -> list[speech_pb2.ConverseResponse]:
        last = self._last
        if last is None or (interrupt.own or last).number > last.number:
            return []
        tokenizer = self._tokenizer(last.configuration.options)
        return await self._interruptions.stop(last, interrupt, tokenizer)

    def _apply(self, configuration: Configuration) -> None:
        voice = configuration.voice.result()
        self._speaker = voice.speaker
        if voice.heard is not None:
            self._heard = voice.heard
        self._context.voice = [*voice.prompt, *self._heard]
        if configuration.starts_over:
            self._context.said = []

    def _hear(self, theirs: TheirTurn) -> list[speech_pb2.ConverseResponse]:
        responses = []
        try:
            self._context.said.extend(theirs.segments.result())
        except CallError as error:
            if error.reason != NOTHING_SPEAKABLE:
                raise
            text = "user_turn: its text has nothing speakable"  # a cough, a silence
            responses.append(converse_events.warning("NOTHING_SPEAKABLE", text))
        limit = self._deployment.max_seq_len
        if limit and (dropped := self._context.make_room(limit)):
            responses.append(converse_events.context_dropped(dropped))
        return responses

    def _unspoken(self, own: OwnTurn) -> speech_pb2.ConverseResponse:
        """The end of a turn that never began."""
        own.over = True
        reason = common_pb2.FINISH_REASON_INTERRUPTED if own.dropped else common_pb2.FINISH_REASON_REFUSED
        count_finish(reason)
        return converse_events.finished(own, reason, "", self._deployment.rules.sample_rate_hz)

    async def _speak(self, own: OwnTurn) -> Responses:
        spoken = SpokenTurn(
            self._deployment,
            own,
            self._context,
            self._inbox,
            self._interruptions,
            self._call.time_remaining,
            lambda deadline: self._tokenizer(own.configuration.options, deadline),
            speaker=self._speaker,
            key=self._key,
        )
        self._inbox.speaking = own
        try:
            async with aclosing(spoken.responses()) as responses:
                async for response in responses:
                    if own.sent_samples:
                        self._last = own
                    yield response
        finally:
            self._inbox.speaking = None
        if spoken.interrupt is not None:
            self._last = own
            tokenizer = self._tokenizer(own.configuration.options)
            for response in await self._interruptions.stop(own, spoken.interrupt, tokenizer):
                yield response

    def _tokenizer(self, options: speech_pb2.ConverseConfigure, deadline: Deadline | None = None) -> PromptTokenizer:
        normalize = options.text_normalization if options.HasField("text_normalization") else True
        deadline = deadline or Deadline(self._call.time_remaining, self._deployment.settings.max_request_s)
        return PromptTokenizer(self._deployment.stages, deadline, normalize, self._encodings)
