"""SpeechService.Converse: one conversation, from its first message to its last."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field

import grpc
from csm.common.v1 import common_pb2
from csm.speech.v1 import speech_pb2
from opentelemetry import trace

from gateway.access import Access
from gateway.config import GatewaySettings
from gateway.output import Output
from gateway.speech.context import Context, Segment
from gateway.speech.encoding import ENCODINGS_AT_ONCE, Encoder, Heard
from gateway.speech.rules import SpeechRules
from gateway.speech.summary import count_finish, fill_summary
from gateway.speech.text_source import TextSource
from gateway.speech.turn import (
    AudioChunk,
    ContextDropped,
    NothingSpeakable,
    Started,
    TextLate,
    Turn,
    TurnEvent,
    TurnOptions,
    UnitStarted,
)
from gateway.stages import Stages
from gateway.voices.names import VoiceNames
from services.runtime.admission import Admission
from services.runtime.errors import NOTHING_SPEAKABLE, CallError, InvalidArgument, ResourceExhausted, UnavailableError
from services.runtime.request_reader import MIB

_tracer = trace.get_tracer("csm.gateway")
_SEEDS = 2**64
# Of one conversation.
_MAX_WAITING = 64  # turns and changes that wait to be taken up
_MAX_INTERRUPTS = 16
_TURNS_KEPT = 64  # that an interrupt may still name


@dataclass
class _OwnTurn:
    """A turn of ours, from its first text on."""

    number: int
    text: TextSource
    configure: speech_pb2.ConverseConfigure
    speaker: int
    dropped: bool = False  # interrupted before it began
    over: bool = False  # text that still comes for it is not spoken
    sent_samples: int = 0  # at the bundle's rate


@dataclass
class _TheirTurn:
    """What the other party said, being encoded."""

    segment: asyncio.Task[list[Segment]]
    size: int  # of its clip, bytes


@dataclass(frozen=True)
class _NewVoice:
    """The voice prompt of the turns that follow. starts_over: what was said before is forgotten."""

    segments: list[Segment]
    starts_over: bool


@dataclass
class _Interrupt:
    """own: the turn that it names; None: the one that speaks, else the last one that was heard."""

    heard_s: float | None
    own: _OwnTurn | None


@dataclass(frozen=True)
class Deployment:
    """What all conversations of a gateway share. draining: set once the server stops."""

    settings: GatewaySettings
    stages: Stages
    rules: SpeechRules
    access: Access
    streams: Admission
    voices: VoiceNames
    draining: asyncio.Event = field(default_factory=asyncio.Event)


class Conversation:
    """`responses` may be iterated once; closing it ends everything that runs."""

    def __init__(self, deployment: Deployment, context: grpc.aio.ServicerContext):
        self._deployment, self._call = deployment, context
        self._configure = speech_pb2.ConverseConfigure()
        self._speaker = 0
        self._voice: list[Segment] = []  # the voice prompt of the turns that are being written
        self._heard: list[Segment] = []  # what the caller gave of it
        self._context = Context()
        self._key = secrets.token_hex(8)  # keeps its calls on the replica that has its prompt
        self._items: deque[_OwnTurn | _TheirTurn | _NewVoice] = deque()
        self._writing: _OwnTurn | None = None  # takes the text that comes
        self._speaking: _OwnTurn | None = None
        self._last: _OwnTurn | None = None  # that was heard or interrupted
        self._encodings = asyncio.Semaphore(ENCODINGS_AT_ONCE)
        self._turns: dict[int, _OwnTurn] = {}  # the last ones, by number
        self._next_turn = 0
        self._interrupts: deque[_Interrupt] = deque()
        self._changed = asyncio.Event()
        self._ended = False  # the caller sends nothing more
        self._error: Exception | None = None

    async def responses(
        self, requests: AsyncIterator[speech_pb2.ConverseRequest]
    ) -> AsyncGenerator[speech_pb2.ConverseResponse, None]:
        """Raises: CallError."""
        first = await anext(requests, None)
        if first is None or first.WhichOneof("request") != "configure":
            raise InvalidArgument("configure", "must be the first message")
        await self._take_configure(first.configure, is_first=True)
        yield speech_pb2.ConverseResponse(
            started=speech_pb2.ConverseStarted(bundle=self._deployment.stages.identity, trace_id=_trace_id())
        )
        tasks = [
            asyncio.create_task(self._read(requests)),
            asyncio.create_task(self._watch_drain()),
        ]
        try:
            async with aclosing(self._run()) as responses:
                async for response in responses:
                    yield response
        finally:
            for item in self._items:
                if isinstance(item, _TheirTurn):
                    tasks.append(item.segment)  # type: ignore[arg-type]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    # What comes in.

    async def _read(self, requests: AsyncIterator[speech_pb2.ConverseRequest]) -> None:
        try:
            async for request in requests:
                match request.WhichOneof("request"):
                    case "configure":
                        await self._take_configure(request.configure, is_first=False)
                    case "append_text":
                        self._take_text(request.append_text.text)
                    case "flush":
                        if self._writing is not None:
                            self._writing.text.flush()
                            self._writing = None
                    case "interrupt":
                        self._take_interrupt(request.interrupt)
                    case "user_turn":
                        self._take_user_turn(request.user_turn)
                    case _:
                        raise InvalidArgument("request", "must be set")
                self._changed.set()
            if self._writing is not None:
                self._writing.text.flush()
            self._ended = True
        except Exception as error:
            self._error = error
        self._changed.set()

    async def _watch_drain(self) -> None:
        await self._deployment.draining.wait()
        self._changed.set()

    async def _take_configure(self, configure: speech_pb2.ConverseConfigure, *, is_first: bool) -> None:
        merged = speech_pb2.ConverseConfigure()
        merged.CopyFrom(self._configure)
        del merged.context[:]
        merged.MergeFrom(configure)
        settings = self._deployment.settings
        if len(configure.context) > settings.max_context_turns:
            raise InvalidArgument(
                "configure.context",
                f"has {len(configure.context)} turns, at most {settings.max_context_turns} are taken",
            )
        if merged.HasField("max_audio_ms") and merged.max_audio_ms < 1:
            raise InvalidArgument("configure.max_audio_ms", f"must be 1 or more, not {merged.max_audio_ms}")
        try:
            Output(merged.output, self._deployment.rules.sample_rate_hz)
        except InvalidArgument as error:
            raise InvalidArgument(f"configure.{error.field}", error.description) from None
        turns = [
            Heard(turn.speaker, turn.text, turn.audio, f"configure.context[{index}]")
            for index, turn in enumerate(configure.context)
        ]
        if configure.voice and not configure.HasField("speaker"):
            merged.ClearField("speaker")
        elif configure.HasField("speaker") and not configure.voice:
            merged.voice = ""
        choice = await self._deployment.voices.choose(
            merged.voice,
            merged.speaker if merged.HasField("speaker") else None,
            self._deployment.access.owner(),
            lambda: self._encoder(speech_pb2.ConverseConfigure()),
            "configure",
        )
        if turns or is_first:
            self._heard = await self._encoder(merged).heard(turns)
        self._speaker = choice.speaker
        self._voice = [*choice.prompt, *self._heard]
        self._enqueue(_NewVoice(self._voice, starts_over=bool(turns)))
        del merged.context[:]
        self._configure = merged

    def _take_text(self, text: str) -> None:
        if not text or (self._writing is not None and self._writing.over):
            return
        most = self._deployment.settings.max_text_chars
        waiting = sum(item.text.pending for item in self._items if isinstance(item, _OwnTurn))
        waiting += self._speaking.text.pending if self._speaking is not None else 0
        if waiting + len(text) > most:
            raise InvalidArgument(
                "append_text.text", f"makes {waiting + len(text)} characters wait to be spoken, at most {most} may"
            )
        self._deployment.access.charge(len(text), "append_text.text")
        if self._writing is None:
            info = self._deployment.stages.info
            free = (info.max_seq_len if info is not None else 0) - sum(one.tokens for one in self._voice)
            source = self._deployment.rules.text_source(free)
            self._writing = _OwnTurn(self._next_turn, source, self._configure, self._speaker)
            self._turns[self._next_turn] = self._writing
            self._turns.pop(self._next_turn - _TURNS_KEPT, None)
            self._next_turn += 1
            self._enqueue(self._writing)
        self._writing.text.append(text)

    def _take_interrupt(self, interrupt: speech_pb2.InterruptTurn) -> None:
        turn = interrupt.turn if interrupt.HasField("turn") else None
        if turn is not None and turn not in self._turns:
            raise InvalidArgument(
                "interrupt.turn",
                f"must be one of the last turns, {min(self._turns, default=0)} to {self._next_turn - 1}, not {turn}",
            )
        heard_s = interrupt.heard.ToNanoseconds() / 1e9 if interrupt.HasField("heard") else None
        if heard_s is not None and heard_s < 0:
            raise InvalidArgument("interrupt.heard", f"must not be negative, and is {heard_s:g} s")
        if len(self._interrupts) >= _MAX_INTERRUPTS:
            raise ResourceExhausted(f"interrupt: {_MAX_INTERRUPTS} of them wait already", 1.0, retryable=False)
        for item in self._items:
            if isinstance(item, _OwnTurn):
                item.dropped = True
                item.text.flush()
        self._writing = None
        if self._speaking is not None:
            self._speaking.text.flush()
        self._interrupts.append(_Interrupt(heard_s, None if turn is None else self._turns[turn]))

    def _take_user_turn(self, turn: speech_pb2.UserTurn) -> None:
        size = turn.audio.ByteSize()
        waiting = size + sum(item.size for item in self._items if isinstance(item, _TheirTurn))
        most = self._deployment.settings.max_message_mib * MIB
        if waiting > most:
            text = f"user_turn.audio: {waiting} bytes of clips would wait to be heard, at most {most} may"
            raise ResourceExhausted(text, 1.0, retryable=False)
        heard = Heard(turn.speaker if turn.HasField("speaker") else 1, turn.text, turn.audio, "user_turn")
        segment = asyncio.create_task(self._encoder(self._configure).heard([heard]))
        self._enqueue(_TheirTurn(segment, size))

    def _enqueue(self, item: _OwnTurn | _TheirTurn | _NewVoice) -> None:
        self._items.append(item)
        if len(self._items) > _MAX_WAITING:
            text = f"more than {_MAX_WAITING} turns wait to be spoken or heard"
            raise ResourceExhausted(text, 1.0, retryable=False)

    # What goes out.

    async def _run(self) -> AsyncGenerator[speech_pb2.ConverseResponse, None]:
        idle_s = self._deployment.settings.conversation_idle_s
        while True:
            if self._error is not None:
                raise self._error
            if self._interrupts:
                # No turn is being generated, but one may still be playing.
                interrupt, last = self._interrupts.popleft(), self._last
                if last is not None and (interrupt.own or last).number <= last.number:
                    for response in await self._stop(last, interrupt):
                        yield response
            elif self._deployment.draining.is_set():
                yield _warning("GOING_AWAY", "the server is stopping: open another conversation")
                if any(isinstance(item, _OwnTurn) and not item.dropped for item in self._items):
                    raise UnavailableError("the server is stopping before the next turn", reason="GOING_AWAY")
                return
            elif self._items:
                item = self._items.popleft()
                if isinstance(item, _TheirTurn):
                    async for response in self._hear(item):
                        yield response
                elif isinstance(item, _NewVoice):
                    self._context.voice = item.segments
                    if item.starts_over:
                        self._context.said = []
                elif item.dropped:
                    count_finish(common_pb2.FINISH_REASON_INTERRUPTED)
                    yield self._finished(item, common_pb2.FINISH_REASON_INTERRUPTED, "")
                else:
                    async with aclosing(self._speak(item)) as responses:
                        async for response in responses:
                            yield response
            elif self._ended:
                return
            else:
                self._changed.clear()
                try:
                    async with asyncio.timeout(idle_s):
                        await self._changed.wait()
                except TimeoutError:
                    raise _idle(idle_s) from None

    async def _hear(self, theirs: _TheirTurn) -> AsyncGenerator[speech_pb2.ConverseResponse, None]:
        try:
            self._context.said.extend(await theirs.segment)
        except CallError as error:
            if error.reason != NOTHING_SPEAKABLE:
                raise
            yield _warning("NOTHING_SPEAKABLE", "user_turn: its text has nothing speakable")  # a cough, a silence
        info = self._deployment.stages.info
        if info is not None and (dropped := self._context.make_room(info.max_seq_len)):
            yield _dropped(dropped)

    async def _speak(self, own: _OwnTurn) -> AsyncGenerator[speech_pb2.ConverseResponse, None]:
        deployment = self._deployment
        with (
            _tracer.start_as_current_span("csm.turn", attributes={"csm.turn": own.number}),
            deployment.access.enter(),
            deployment.streams.enter(),
        ):
            output = Output(own.configure.output, deployment.rules.sample_rate_hz)
            turn = Turn(
                deployment.stages,
                deployment.rules,
                self._context,
                own.text,
                self._encoder(own.configure),
                self._options(own),
                self._timeout(),
            )
            self._speaking = own
            interrupt: _Interrupt | None = None
            try:
                events = turn.events()
                try:
                    while interrupt is None:
                        event = await self._event_or_interrupt(own, events)
                        if isinstance(event, _Interrupt):
                            interrupt = event
                        elif event is None:
                            break
                        else:
                            for response in self._written(own, turn, output, event):
                                yield response
                finally:
                    await events.aclose()
            except CallError as error:
                # A turn without speech is no end of the conversation.
                if error.reason not in ("EMPTY_SPEECH", NOTHING_SPEAKABLE):
                    raise
                count_finish(common_pb2.FINISH_REASON_EMPTY)
                yield await self._cut(own, None, common_pb2.FINISH_REASON_EMPTY)
                return
            finally:
                own.over, self._speaking = True, None
            if interrupt is not None:
                count_finish(common_pb2.FINISH_REASON_INTERRUPTED)
                self._last = own
                for response in await self._stop(own, interrupt):
                    yield response
                return
            if tail := output.finish():
                yield _audio(own, tail)
            finished = self._finished(own, turn.finish_reason, "".join(self._said(own.number)))
            fill_summary(finished.turn_finished.summary, turn, output.samples, deployment.rules)
            yield finished

    async def _event_or_interrupt(
        self, own: _OwnTurn, events: AsyncGenerator[TurnEvent, None]
    ) -> TurnEvent | _Interrupt | None:
        """The turn's next event, None at its end; or an interrupt of it, as soon as there is one.

        Raises: CallError, also when its text stays away for too long.
        """
        idle_s = self._deployment.settings.conversation_idle_s
        following = asyncio.ensure_future(anext(events, None))
        try:
            while True:
                if self._error is not None:
                    raise self._error
                if self._interrupts:
                    return self._interrupts.popleft()
                if following.done():
                    return following.result()
                self._changed.clear()
                changed = asyncio.ensure_future(self._changed.wait())
                try:
                    done, _ = await asyncio.wait(
                        (following, changed), timeout=idle_s, return_when=asyncio.FIRST_COMPLETED
                    )
                finally:
                    changed.cancel()
                if not done and not own.text.flushed:
                    raise _idle(idle_s)
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    def _written(
        self, own: _OwnTurn, turn: Turn, output: Output, event: TurnEvent
    ) -> list[speech_pb2.ConverseResponse]:
        match event:
            case AudioChunk(samples):
                own.sent_samples += len(samples)
                self._last = own
                data = output.feed(samples)
                return [_audio(own, data)] if data else []
            case Started(seed, _):
                started = speech_pb2.TurnStarted(
                    turn=own.number, seed=seed, format=output.format, container=output.container
                )
                responses = [speech_pb2.ConverseResponse(turn_started=started)]
                if header := output.header():
                    responses.append(_audio(own, header))
                return responses
            case UnitStarted(text, spoken, first_sample):
                ratio = output.format.sample_rate_hz / self._deployment.rules.sample_rate_hz
                unit = speech_pb2.SpokenUnit(
                    turn=own.number, text=text, spoken_text=spoken, first_sample=round(first_sample * ratio)
                )
                return [speech_pb2.ConverseResponse(unit=unit)]
            case TextLate():
                return [
                    _warning("TEXT_LATE", f"turn {own.number}: its text comes too late, the listener hears silence")
                ]
            case ContextDropped(segments):
                return [_dropped(segments)]
            case NothingSpeakable(text):
                return [_warning("NOTHING_SPEAKABLE", f"turn {own.number}: {text[:60]!r} has nothing speakable")]

    async def _stop(self, last: _OwnTurn, interrupt: _Interrupt) -> list[speech_pb2.ConverseResponse]:
        """Keep what was heard. last: the turn that speaks, or the last one; those after the named one were not heard."""
        named = interrupt.own or last
        reason = common_pb2.FINISH_REASON_INTERRUPTED
        if named.number > last.number:  # it was still waiting, and is dropped
            return [await self._cut(last, None, reason)]
        responses = [await self._cut(named, interrupt.heard_s, reason)]
        for number in range(named.number + 1, last.number + 1):
            if (later := self._turns.get(number)) is not None and (later is last or later.sent_samples):
                responses.append(await self._cut(later, 0.0, reason))
        return responses

    async def _cut(
        self, own: _OwnTurn, heard_s: float | None, reason: common_pb2.FinishReason.ValueType
    ) -> speech_pb2.ConverseResponse:
        """heard_s: how much of the turn's audio the context keeps; None: all that was sent."""
        rules = self._deployment.rules
        samples = own.sent_samples
        if heard_s is not None:
            samples = min(samples, round(heard_s * rules.sample_rate_hz))
        own.sent_samples = samples
        heard = self._context.cut_turn(own.number, samples, rules.frame_samples, rules.frame_rate_hz)
        await self._tokenize_cut(own)
        return self._finished(own, reason, heard)

    async def _tokenize_cut(self, own: _OwnTurn) -> None:
        """Words that were cut off have new token ids."""
        encoder, kept = self._encoder(own.configure), []
        for segment in self._context.said:
            if not segment.ids:
                try:
                    text = await encoder.text(segment.speaker, segment.text, "append_text")
                except CallError as error:
                    if error.reason != NOTHING_SPEAKABLE:
                        raise
                    continue  # a dash, say
                segment = segment.with_ids(text.ids)
            kept.append(segment)
        self._context.said = kept

    def _finished(
        self, own: _OwnTurn, reason: common_pb2.FinishReason.ValueType, heard: str
    ) -> speech_pb2.ConverseResponse:
        finished = speech_pb2.TurnFinished(turn=own.number, finish_reason=reason, heard_text=heard)
        finished.heard.FromNanoseconds(round(own.sent_samples / self._deployment.rules.sample_rate_hz * 1e9))
        return speech_pb2.ConverseResponse(turn_finished=finished)

    def _said(self, turn: int) -> list[str]:
        return [segment.text for segment in self._context.said if segment.turn == turn]

    def _options(self, own: _OwnTurn) -> TurnOptions:
        configure, rules = own.configure, self._deployment.rules
        sampling = common_pb2.SamplingOptions()
        sampling.CopyFrom(configure.sampling)
        if sampling.HasField("seed"):
            sampling.seed = (sampling.seed + own.number) % _SEEDS
        max_frames = rules.max_frames(configure.max_audio_ms if configure.HasField("max_audio_ms") else None)
        return TurnOptions(
            own.speaker,
            sampling,
            max_frames,
            own.number,
            self._key,
            on_audio=self._deployment.access.count_audio,
            path="configure",
            text_path="append_text",
        )

    def _encoder(self, configure: speech_pb2.ConverseConfigure) -> Encoder:
        normalize = configure.text_normalization if configure.HasField("text_normalization") else True
        return Encoder(self._deployment.stages, self._timeout(), normalize, self._encodings)

    def _timeout(self) -> Callable[[], float]:
        """Seconds left of the caller's deadline, or of our own for one turn."""
        own = time.monotonic() + self._deployment.settings.max_request_s

        def left() -> float:
            theirs = self._call.time_remaining()
            ours = own - time.monotonic()
            return max(0.0, ours if theirs is None else min(ours, theirs))

        return left


def _audio(own: _OwnTurn, data: bytes) -> speech_pb2.ConverseResponse:
    return speech_pb2.ConverseResponse(audio=speech_pb2.TurnAudio(turn=own.number, data=data))


def _warning(code: str, message: str) -> speech_pb2.ConverseResponse:
    number = speech_pb2.ConverseWarningCode.Value(f"CONVERSE_WARNING_CODE_{code}")
    return speech_pb2.ConverseResponse(warning=speech_pb2.ConverseWarning(code=number, message=message))


def _idle(idle_s: float) -> CallError:
    return CallError(grpc.StatusCode.ABORTED, f"the conversation was idle for {idle_s:g} s", reason="IDLE")


def _dropped(segments: int) -> speech_pb2.ConverseResponse:
    return _warning("CONTEXT_DROPPED", f"the {segments} oldest segments have left the context")


def _trace_id() -> str:
    return f"{trace.get_current_span().get_span_context().trace_id:032x}"
