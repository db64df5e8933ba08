"""One turn: its text, unit by unit, through one chain.

Each unit is a generation of its own, whose prompt is the conversation before it, the turn's earlier units included.
Codec and watermark run through the whole turn, so there is no seam.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from csm.backbone.v1 import backbone_pb2
from csm.common.v1 import common_pb2

from gateway.chain import Generation, ResumeBudget, SpeechChain
from gateway.speech.context import Context, Segment
from gateway.speech.encoding import Encoder, SpokenText, prompt_parts
from gateway.speech.ending import SilenceEnd, likely_s
from gateway.speech.rules import SpeechRules
from gateway.speech.text_source import TextSource
from gateway.stages import Stages
from gateway.timeline import Timeline
from services.runtime.errors import NOTHING_SPEAKABLE, CallError, InternalError, InvalidArgument

_MAX_HELD_BACK_FRAMES = 64  # of ChunkPolicy, by the contract
_SEEDS = 2**64
_LATE_MARGIN_S = 0.15  # before the listener has played all, silence must be on its way
_JOIN_MARGIN_S = 1.0  # before that, a sentence is spoken as it is rather than wait for more to be joined with it
_LENGTH_SPREAD = 1.6  # real over likely length, at most
_KEEP_CHAIN_S = 5.0  # a turn whose text is late for longer gives its slots back until text comes
_UNIT_PATIENCE_S = 10.0  # a turn that has begun waits for a slot rather than break off


@dataclass(frozen=True)
class Started:
    """First event: every stage has admitted the turn."""

    seed: int
    prompt_tokens: int


@dataclass(frozen=True)
class UnitStarted:
    """Comes before the audio of its words. first_sample: in the turn's audio, at the bundle's rate."""

    text: str
    spoken_text: str
    first_sample: int


@dataclass(frozen=True)
class AudioChunk:
    """Marked audio, float32 [T] at the bundle's rate."""

    samples: np.ndarray


@dataclass(frozen=True)
class TextLate:
    """The listener has heard all there is, and the text is not complete."""


@dataclass(frozen=True)
class ContextDropped:
    """So many segments have left the context."""

    segments: int


@dataclass(frozen=True)
class NothingSpeakable:
    """A unit was left out. text: as it came."""

    text: str


TurnEvent = Started | UnitStarted | AudioChunk | TextLate | ContextDropped | NothingSpeakable


@dataclass(frozen=True)
class TurnOptions:
    """What the caller asks of a turn. seed: None is drawn. max_frames: a cap on all units together.

    streamed: whether the caller hears it while it is spoken. on_audio: is given the seconds of each piece of audio. path, text_path: of what holds the options and the text
    in the caller's request, for errors.
    """

    speaker: int = 0
    sampling: common_pb2.SamplingOptions = field(default_factory=common_pb2.SamplingOptions)
    max_frames: int | None = None
    turn: int = 0
    key: str | None = None
    streamed: bool = True
    on_audio: Callable[[float], None] = lambda seconds: None
    path: str = "utterance"
    text_path: str = "utterance"


class Turn:
    """`events` may be iterated once. What was said is appended to `context` as it is generated.

    spoken_text, frames, finish_reason: as far as it has come; whole when `events` has ended.
    """

    def __init__(
        self,
        stages: Stages,
        rules: SpeechRules,
        context: Context,
        text: TextSource,
        encoder: Encoder,
        options: TurnOptions,
        timeout: Callable[[], float],
    ):
        """timeout: seconds left for the turn, asked at each upstream call."""
        self._stages, self._rules, self._context, self._text = stages, rules, context, text
        self._encoder, self._options, self._timeout = encoder, options, timeout
        self._budget = ResumeBudget(rules.resumes)
        self._seed: int | None = options.sampling.seed if options.sampling.HasField("seed") else None
        self._fixed_seed = self._seed is not None
        self._units = 0
        self._opened = False  # whether the chain of now has its slots
        self._cut = False
        self._given_samples = 0  # to the caller
        self._playing_until_s = 0.0  # when a listener who plays what comes at once has played it
        self._silence: tuple[int, SilenceEnd] | None = None  # first sample of the unit, its detector
        self._silent = False
        self.timeline = Timeline(rules.listener_buffer_s, streamed=options.streamed)
        self.finish_reason: common_pb2.FinishReason.ValueType = common_pb2.FINISH_REASON_UNSPECIFIED
        self.prompt_tokens = 0
        self.spoken: list[str] = []
        self.frames = 0
        self.samples = 0

    async def events(self) -> AsyncGenerator[TurnEvent, None]:
        """Until the speech ends. Close it early and everything upstream is cancelled. Raises: CallError."""
        loop = asyncio.get_running_loop()
        try:
            unit = await self._text.next_unit(None)
            while unit is not None:
                async with SpeechChain(
                    self._stages,
                    resumes=self._budget,
                    timeout=self._timeout,
                    on_output=self.timeline.output,
                    on_marked=self._count_audio,
                    on_waited=self.timeline.waited,
                    tap=self._listen,
                    pauses=not self._text.flushed,
                ) as chain:
                    self._opened, self._silence = False, None
                    chain.spawn(self._speak_units(chain, unit))
                    async for item in chain.output():
                        if isinstance(item, np.ndarray):
                            self._given_samples += len(item)
                            begin_s = max(self._playing_until_s, loop.time())
                            self._playing_until_s = begin_s + len(item) / self._rules.sample_rate_hz
                            yield AudioChunk(item)
                        else:
                            yield item
                    self.frames, self.samples = self.frames + chain.frames, self.samples + chain.samples
                # The text may have come too late for the chain to be kept.
                began_s = loop.time()
                unit = None if self._cut else await self._text.next_unit(None)
                self.timeline.waited(loop.time() - began_s)
            if not self._units:
                raise InvalidArgument(
                    f"{self._options.text_path}.text", "has nothing speakable", reason=NOTHING_SPEAKABLE
                )
        finally:
            self.timeline.close()

    def _count_audio(self, samples: int) -> None:
        seconds = samples / self._rules.sample_rate_hz
        self.timeline.audio(seconds)
        self._options.on_audio(seconds)

    async def _speak_units(self, chain: SpeechChain, unit: str | None) -> None:
        """Until the text ends, the turn is cut, or no text has come for long."""
        while unit is not None and not self._cut:
            self._cut = await self._speak(chain, unit)
            unit = None if self._cut else await self._next_unit(chain)
        if self._opened:
            chain.finish()
        else:
            chain.end()

    async def _next_unit(self, chain: SpeechChain) -> str | None:
        left_s = self._audio_left_s(chain)
        unit = await self._text.next_unit(max(0.0, left_s - _LATE_MARGIN_S), max(0.0, left_s - _JOIN_MARGIN_S))
        if unit is None and not self._text.done:
            # The watermark keeps its look-ahead until more audio comes: silence pushes the last words out.
            frame = chain.samples_per_frame
            chain.pause(-(-self._lookahead // frame) * frame + frame)
            chain.post(TextLate())
            self._text.hurry()
            began_s = asyncio.get_running_loop().time()
            unit = await self._text.next_unit(_KEEP_CHAIN_S)
            self.timeline.waited(asyncio.get_running_loop().time() - began_s)
        return unit

    @property
    def seed(self) -> int:
        """In use; 0 before there is one."""
        return self._seed or 0

    @property
    def _lookahead(self) -> int:
        return self._stages.info.watermark_lookahead_samples if self._stages.info is not None else 0

    def _audio_left_s(self, chain: SpeechChain) -> float:
        """What the listener has still to play, of what can reach it before more audio is generated."""
        coming = max(0, self.samples + chain.samples - self._lookahead - self._given_samples)
        left_s = max(0.0, self._playing_until_s - asyncio.get_running_loop().time())
        return left_s + coming / self._rules.sample_rate_hz

    async def _speak(self, chain: SpeechChain, unit: str) -> bool:
        """Speak one unit, in parts if its words are too many for one generation.

        Returns whether the cap on the turn's length was reached. Raises: CallError.
        """
        try:
            text = await self._tokenized(unit)
        except CallError as error:
            if error.reason != NOTHING_SPEAKABLE:
                raise
            chain.post(NothingSpeakable(unit))
            return False
        self.timeline.output("tokenizer")
        if self._fits(text):
            return await self._speak_words(chain, unit, unit, text)
        # Numbers and dates take more letters as words. The spoken form of a part of a spoken form is itself.
        for number, words in enumerate(self._rules.parts(text.spoken, self._free_positions)):
            part = await self._tokenized(words)
            if await self._speak_words(chain, unit if not number else "", words, part):
                return True
        return False

    async def _tokenized(self, words: str) -> SpokenText:
        path = self._options.text_path
        try:
            return await self._encoder.text(self._options.speaker, words, path)
        except InvalidArgument as error:
            if error.field != f"{path}.speaker":
                raise
            raise InvalidArgument(f"{self._options.path}.speaker", error.description, reason=error.reason) from None

    @property
    def _free_positions(self) -> int:
        """Of the model, when all turns have left the context."""
        info = self._stages.info
        voice = sum(segment.tokens for segment in self._context.voice)
        return max(0, (info.max_seq_len if info is not None else 0) - voice)

    def _fits(self, text: SpokenText) -> bool:
        needed = math.ceil(likely_s(text.spoken) * _LENGTH_SPREAD * self._rules.frame_rate_hz)
        return len(text.ids) + needed <= self._free_positions

    async def _speak_words(self, chain: SpeechChain, shown: str, unit: str, text: SpokenText) -> bool:
        """One generation. shown: the text that the caller gets with it; unit: the words of the context."""
        if self._frames_left(chain) == 0:  # the units before took exactly what the turn may have
            self.finish_reason = common_pb2.FINISH_REASON_MAX_LENGTH
            return True
        max_frames, goes_on = self._room(chain, unit, text)
        for attempt in range(1 + (0 if self._fixed_seed else self._rules.empty_retries)):
            request = self._request(text, max_frames, attempt)
            async with Generation(
                self._stages,
                request,
                resumes=self._budget,
                timeout=self._timeout,
                key=self._options.key,
                path=self._options.path,
            ) as generation:
                await self._open(chain, generation)
                first_sample = chain.samples
                frames = await generation.read()
                if frames is None:
                    continue
                chain.post(UnitStarted(shown, text.spoken, self.samples + first_sample))
                self.spoken.append(text.spoken)
                self._units += 1
                begin_frame = chain.frames
                try:
                    reason = await self._feed(chain, generation, frames, text.spoken or unit, first_sample)
                finally:  # a turn that is interrupted here has said part of the unit
                    said = generation.log.frames(0, chain.frames - begin_frame)
                    begin = self.samples + first_sample
                    self._context.said.append(
                        Segment(self._options.speaker, unit, text.ids, said, self._options.turn, begin)
                    )
                break
        else:
            raise InternalError("the model ended the speech before its first frame", reason="EMPTY_SPEECH")
        if reason == common_pb2.FINISH_REASON_MAX_LENGTH:
            chain.cut()
        if self.finish_reason != common_pb2.FINISH_REASON_MAX_LENGTH:
            self.finish_reason = reason
        return reason == common_pb2.FINISH_REASON_MAX_LENGTH and not goes_on

    async def _open(self, chain: SpeechChain, generation: Generation) -> None:
        patience_s = _UNIT_PATIENCE_S if self._units else 0.0
        if self._opened:
            await generation.open(patience_s)
            return
        try:
            async with asyncio.TaskGroup() as group:
                opening = group.create_task(generation.open(patience_s))
                group.create_task(chain.open(patience_s))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        self._opened = True
        started = opening.result()
        self._seed = started.seed if self._seed is None else self._seed
        if not self._units:
            self.prompt_tokens = started.prompt_tokens
            chain.post(Started(started.seed, started.prompt_tokens))

    def _request(self, text: SpokenText, max_frames: int, attempt: int) -> backbone_pb2.GenerateRequest:
        sampling = common_pb2.SamplingOptions()
        sampling.CopyFrom(self._options.sampling)
        if self._seed is not None:
            sampling.seed = (self._seed + self._units + attempt) % _SEEDS
        return backbone_pb2.GenerateRequest(
            prompt=prompt_parts(self._context.segments(), text.ids),
            sampling=sampling,
            max_frames=max_frames,
            chunk_policy=backbone_pb2.ChunkPolicy(
                ramp_frames=self._rules.ramp_frames,
                held_back_frames=min(self._stages.held_back_frames, _MAX_HELD_BACK_FRAMES) if not self._units else 0,
            ),
        )

    def _frames_left(self, chain: SpeechChain) -> int | None:
        """What is left of the cap on the turn; None: there is no cap."""
        if self._options.max_frames is None:
            return None
        return max(0, self._options.max_frames - self.frames - chain.frames)

    def _room(self, chain: SpeechChain, unit: str, text: SpokenText) -> tuple[int, bool]:
        """(most frames for the unit, whether the turn may go on when it takes them all).

        Turns leave the context when there is no room. Raises: InvalidArgument when there is none without them.
        """
        info = self._stages.info
        positions = info.max_seq_len if info is not None else 0
        ceiling = self._rules.ending.ceiling_frames(text.spoken or unit, self._rules.frame_rate_hz)
        needed = math.ceil(likely_s(text.spoken or unit) * _LENGTH_SPREAD * self._rules.frame_rate_hz)
        wanted = max(needed, ceiling or 0)
        left = self._frames_left(chain)
        if left is not None:
            wanted = min(wanted, left)
        dropped = self._context.make_room(max(0, positions - len(text.ids) - wanted))
        if dropped:
            chain.post(ContextDropped(dropped))
        room = positions - self._context.tokens - len(text.ids)
        if room < min(needed, wanted):
            raise InvalidArgument(
                f"{self._options.path}.context",
                f"takes {self._context.tokens} of the model's {positions} positions, which leaves no room for "
                f"{len(unit)} characters of text and about {likely_s(unit):.0f} s of speech",
            )
        bounds = [(room, True), (info.max_frames if info is not None else room, True)]
        if ceiling is not None:
            bounds.append((ceiling, True))
        if left is not None:
            bounds.append((left, False))
        return min(bounds, key=lambda bound: bound[0])

    async def _feed(
        self,
        chain: SpeechChain,
        generation: Generation,
        frames: Sequence[common_pb2.Frame] | None,
        spoken: str,
        first_sample: int,
    ) -> common_pb2.FinishReason.ValueType:
        """All frames of a generation, until it ends or the speech has ended in silence."""
        self._silence = first_sample, SilenceEnd(self._rules.ending, spoken, self._rules.sample_rate_hz)
        self._silent = False
        while frames is not None:
            if self._silent:
                return common_pb2.FINISH_REASON_SILENCE
            await chain.feed(frames)
            frames = await generation.read()
        return generation.finish_reason

    def _listen(self, samples: np.ndarray, first_sample: int) -> None:
        """The codec's samples, on their way to the watermark."""
        if self._silence is None:
            return
        begin, detector = self._silence
        spoken = samples[max(0, begin - first_sample) :]
        if len(spoken) and detector.feed(spoken, self._rules.frame_samples):
            self._silent = True
