"""Speaks one turn of a conversation, until it ends or is interrupted."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import ExitStack, aclosing, suppress

import grpc
from csm.common.v1 import common_pb2
from csm.speech.v1 import speech_pb2
from opentelemetry import trace

from gateway.output import Output
from gateway.speech import converse_events
from gateway.speech.context import Context
from gateway.speech.converse_items import Interrupt, OwnTurn
from gateway.speech.deadline import Deadline
from gateway.speech.deployment import Deployment
from gateway.speech.inbox import Inbox
from gateway.speech.interruptions import Interruptions
from gateway.speech.prompt_tokenizer import PromptTokenizer
from gateway.speech.summary import fill_summary
from gateway.speech.turn import Turn
from gateway.speech.turn_events import AudioChunk, TurnEvent
from gateway.speech.turn_options import TurnOptions
from services.runtime.errors import NOTHING_SPEAKABLE, CallError, ResourceExhausted, UnavailableError

_tracer = trace.get_tracer("csm.gateway")
_SEEDS = 2**64
_PLACE_PATIENCE_S = 4.0  # a turn waits so long for room; a listener would not wait longer
_FIRST_RETRY_S = 0.1

Responses = AsyncGenerator[speech_pb2.ConverseResponse, None]


class SpokenTurn:
    """`responses` may be iterated once; closing it ends everything that runs. interrupt: the one that ended it."""

    def __init__(
        self,
        deployment: Deployment,
        own: OwnTurn,
        context: Context,
        inbox: Inbox,
        interruptions: Interruptions,
        time_remaining: Callable[[], float | None],
        tokenizer: Callable[[Deadline], PromptTokenizer],
        *,
        speaker: int,
        key: str,
    ):
        """time_remaining: of the call. key: keeps its generations on the replica that has their prompt."""
        self._deployment, self._own, self._context, self._inbox = deployment, own, context, inbox
        self._interruptions, self._speaker, self._key = interruptions, speaker, key
        own.text.fit(deployment.rules.unit_limits(deployment.max_seq_len - sum(one.tokens for one in context.voice)))
        deadline = Deadline(time_remaining, deployment.settings.max_request_s, own.text.speech_s)
        self._tokenizer = tokenizer(deadline)
        identity = deployment.stages.identity
        self._output = Output(own.configuration.options.output, identity.sample_rate_hz, model=identity.bundle_id)
        self._turn = Turn(
            deployment.stages, deployment.rules, context, own.text, self._tokenizer, self._options(), deadline
        )
        self._following: asyncio.Future[TurnEvent | None] | None = None  # the event that is waited for
        self.interrupt: Interrupt | None = None

    async def responses(self) -> Responses:
        """Until the turn's end, which is the last of them unless `interrupt` is set. Raises: CallError."""
        own, rules = self._own, self._deployment.rules
        with _tracer.start_as_current_span("csm.turn", attributes={"csm.turn": own.number}):
            reason: common_pb2.FinishReason.ValueType
            try:
                async with aclosing(self._until_end()) as responses:
                    async for response in responses:
                        yield response
                reason = common_pb2.FINISH_REASON_INTERRUPTED if self.interrupt else self._turn.finish_reason
            except CallError as error:
                # Neither a turn without speech nor one without room ends the conversation.
                if isinstance(error, ResourceExhausted):
                    reason = common_pb2.FINISH_REASON_REFUSED
                    yield converse_events.refused(own, error)
                elif error.reason in ("EMPTY_SPEECH", NOTHING_SPEAKABLE):
                    reason = common_pb2.FINISH_REASON_EMPTY
                else:
                    raise
            finally:
                own.over = True
            if self.interrupt is None and own.sent_samples:
                for data in await self._output.finish():
                    yield converse_events.audio(own, data)
            sent_s = own.sent_samples / rules.sample_rate_hz
            fill_summary(own.summary, self._turn, self._output.samples, rules, reason=reason, audio_s=sent_s)
            if self.interrupt is None:
                yield await self._interruptions.cut(own, None, reason, self._tokenizer)

    async def _until_end(self) -> Responses:
        """Until the speech's end or its interrupt. Raises: CallError."""
        own = self._own
        with ExitStack() as places:
            events = self._events(places)
            try:
                while self.interrupt is None:
                    event = await self._event_or_interrupt(events)
                    if event is None:
                        return
                    if isinstance(event, Interrupt):
                        async for response in self._on_interrupt(event):
                            yield response
                        continue
                    if isinstance(event, AudioChunk):
                        own.sent_samples += len(event.samples)
                    for response in await converse_events.of_turn(
                        own, self._output, event, self._deployment.rules.sample_rate_hz
                    ):
                        yield response
            finally:
                if self._following is not None:
                    self._following.cancel()
                    await asyncio.gather(self._following, return_exceptions=True)
                await events.aclose()

    async def _on_interrupt(self, interrupt: Interrupt) -> Responses:
        """One of another turn, which keeps those after it, does not stop this one."""
        named = interrupt.own
        if interrupt.keep_later and named is not None and named is not self._own:
            if named.number < self._own.number:
                for response in await self._interruptions.stop(named, interrupt, self._tokenizer):
                    yield response
        else:
            self.interrupt = interrupt

    async def _events(self, places: ExitStack) -> AsyncGenerator[TurnEvent, None]:
        """The turn's, once there is room for it."""
        await self._enter(places)
        async with aclosing(self._turn.events()) as events:
            async for event in events:
                yield event

    async def _enter(self, places: ExitStack) -> None:
        """Take a permit of the token and one of the gateway.

        Raises: ResourceExhausted when none is free for long, UnavailableError when the server stops meanwhile.
        """
        loop, draining = asyncio.get_running_loop(), self._deployment.draining
        ends_s, wait_s = loop.time() + _PLACE_PATIENCE_S, _FIRST_RETRY_S
        while True:
            try:
                with ExitStack() as taken:
                    taken.enter_context(self._deployment.access.enter())
                    taken.enter_context(self._deployment.streams.enter())
                    places.push(taken.pop_all())
                return
            except ResourceExhausted:
                if loop.time() + wait_s > ends_s:
                    raise
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s * random.uniform(0.8, 1.2)):
                    await draining.wait()
                raise UnavailableError("the server is stopping before the next turn", reason="GOING_AWAY")
            wait_s *= 2

    async def _event_or_interrupt(self, events: AsyncGenerator[TurnEvent, None]) -> TurnEvent | Interrupt | None:
        """The turn's next event, None at its end; or an interrupt, as soon as there is one.

        Raises: CallError, also when its text stays away for too long, or is refused.
        """
        inbox, idle_s = self._inbox, self._deployment.settings.conversation_idle_s
        while True:
            if inbox.error is not None:
                raise inbox.error
            if self._own.refusal is not None:
                raise self._own.refusal
            if inbox.interrupts:
                return inbox.interrupts.popleft()
            if self._following is None:
                self._following = asyncio.ensure_future(anext(events, None))
            if self._following.done():
                following, self._following = self._following, None
                return following.result()
            inbox.changed.clear()
            changed = asyncio.ensure_future(inbox.changed.wait())
            try:
                done, _ = await asyncio.wait(
                    (self._following, changed), timeout=idle_s, return_when=asyncio.FIRST_COMPLETED
                )
            finally:
                changed.cancel()
            if not done and not self._own.text.flushed:
                raise idle(idle_s)

    def _options(self) -> TurnOptions:
        options, rules = self._own.configuration.options, self._deployment.rules
        sampling = common_pb2.SamplingOptions()
        sampling.CopyFrom(options.sampling)
        if sampling.HasField("seed"):
            sampling.seed = (sampling.seed + self._own.number) % _SEEDS
        max_frames = rules.max_frames(options.max_audio_ms if options.HasField("max_audio_ms") else None)
        return TurnOptions(
            self._speaker,
            sampling,
            max_frames,
            self._own.number,
            self._key,
            _PLACE_PATIENCE_S,
            on_audio=self._deployment.access.count_audio,
            audit=self._deployment.audit.begin(
                token=self._deployment.access.owner(), voice=options.voice, speaker=self._speaker
            ),
            path="configure",
            text_path="append_text",
        )


def idle(idle_s: float) -> CallError:
    """Nothing has happened for so long."""
    return CallError(grpc.StatusCode.ABORTED, f"the conversation was idle for {idle_s:g} s", reason="IDLE")
