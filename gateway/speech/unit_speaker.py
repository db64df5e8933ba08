"""Speaks the units of one turn, each by a generation of its own, into the chain that the turn has open."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence

import numpy as np
from csm.backbone.v1 import backbone_pb2
from csm.common.v1 import common_pb2

from gateway.chain import Generation, ResumeBudget, SpeechChain
from gateway.speech.context import Context, Segment
from gateway.speech.ending import SilenceEnd, likely_s
from gateway.speech.prompt_tokenizer import PromptTokenizer, SpokenText, prompt_parts
from gateway.speech.rules import SpeechRules
from gateway.speech.turn_events import ContextDropped, NothingSpeakable, Started, UnitStarted
from gateway.speech.turn_options import TurnOptions, unit_seed
from gateway.stages import Stages
from services.runtime.errors import NOTHING_SPEAKABLE, CallError, InternalError, InvalidArgument

_MAX_HELD_BACK_FRAMES = 64  # of ChunkPolicy, by the contract
_LENGTH_SPREAD = 1.6  # real over likely length, at most
_UNIT_PATIENCE_S = 10.0  # a turn that has begun waits for a slot rather than break off


class UnitSpeaker:
    """`enter` a chain, then `speak` units into it. What was said is appended to `context` as it is generated.

    units: spoken so far. spoken, prompt_tokens, finish_reason: of them. opening_s: from the text of the last one to its
    first frames.
    """

    def __init__(
        self,
        stages: Stages,
        rules: SpeechRules,
        context: Context,
        tokenizer: PromptTokenizer,
        options: TurnOptions,
        budget: ResumeBudget,
        timeout: Callable[[], float],
        on_output: Callable[[str], None],
    ):
        self._stages, self._rules, self._context, self._tokenizer = stages, rules, context, tokenizer
        self._options, self._budget, self._timeout, self._on_output = options, budget, timeout, on_output
        self._seed: int | None = options.sampling.seed if options.sampling.HasField("seed") else None
        self._fixed_seed = self._seed is not None
        self._chain: SpeechChain | None = None
        self._chains_frames = self._chains_samples = 0  # of the chains before
        self._silence: tuple[int, SilenceEnd] | None = None  # first sample of the unit, its detector
        self._silent = False
        self.is_open = False  # whether the chain of now has its slots
        self.units = 0
        self.opening_s = 0.0
        self.spoken: list[str] = []
        self.prompt_tokens = 0
        self.finish_reason: common_pb2.FinishReason.ValueType = common_pb2.FINISH_REASON_UNSPECIFIED

    @property
    def seed(self) -> int:
        """In use; 0 before there is one."""
        return self._seed or 0

    @property
    def frames(self) -> int:
        """Of all units so far."""
        return self._chains_frames + (self._chain.frames if self._chain is not None else 0)

    @property
    def samples(self) -> int:
        """There will be so many of what was fed so far, pauses included."""
        return self._chains_samples + (self._chain.samples if self._chain is not None else 0)

    def enter(self, chain: SpeechChain) -> None:
        """What follows is spoken into `chain`; the one before has ended."""
        self._chains_frames, self._chains_samples = self.frames, self.samples
        self._chain, self.is_open, self._silence = chain, False, None

    async def speak(self, unit: str) -> bool:
        """Speak one unit, in parts if its words are too many for one generation.

        Returns whether the cap on the turn's length was reached. Raises: CallError.
        """
        try:
            text = await self._tokenized(unit)
        except CallError as error:
            if error.reason != NOTHING_SPEAKABLE:
                raise
            self._in_chain.post(NothingSpeakable(unit))
            return False
        self._on_output("tokenizer")
        if self._fits(text):
            return await self._speak_words(unit, unit, text)
        # Numbers and dates take more letters as words. The spoken form of a part of a spoken form is itself.
        for number, words in enumerate(self._rules.parts(text.spoken, self._free_positions)):
            part = await self._tokenized(words)
            if await self._speak_words(unit if not number else "", words, part):
                return True
        return False

    def listen(self, samples: np.ndarray, first_sample: int) -> None:
        """The codec's samples, on their way to the watermark."""
        if self._silence is None:
            return
        begin, detector = self._silence
        spoken = samples[max(0, begin - first_sample) :]
        if len(spoken) and detector.feed(spoken, self._rules.frame_samples):
            self._silent = True

    @property
    def _in_chain(self) -> SpeechChain:
        assert self._chain is not None
        return self._chain

    async def _tokenized(self, words: str) -> SpokenText:
        path = self._options.text_path
        try:
            return await self._tokenizer.text(self._options.speaker, words, path)
        except InvalidArgument as error:
            if error.field != f"{path}.speaker":
                raise
            raise InvalidArgument(f"{self._options.path}.speaker", error.description, reason=error.reason) from None

    @property
    def _positions(self) -> int:
        return self._stages.info.max_seq_len if self._stages.info is not None else 0

    @property
    def _free_positions(self) -> int:
        """Of the model, when all turns have left the context."""
        return max(0, self._positions - sum(segment.tokens for segment in self._context.voice))

    def _fits(self, text: SpokenText) -> bool:
        needed = math.ceil(likely_s(text.spoken) * _LENGTH_SPREAD * self._rules.frame_rate_hz)
        return len(text.ids) + needed <= self._free_positions

    async def _speak_words(self, shown: str, unit: str, text: SpokenText) -> bool:
        """One generation. shown: the text that the caller gets with it; unit: the words of the context."""
        if self._frames_left == 0:  # the units before took exactly what the turn may have
            self.finish_reason = common_pb2.FINISH_REASON_MAX_LENGTH
            return True
        max_frames, goes_on = self._room(unit, text)
        began_s = time.monotonic()
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
                await self._open(generation)
                frames = await generation.read()
                if frames is None:
                    continue
                self.opening_s = time.monotonic() - began_s
                self.spoken.append(text.spoken)
                reason = await self._say(generation, frames, shown, unit, text)
                break
        else:
            raise InternalError("the model ended the speech before its first frame", reason="EMPTY_SPEECH")
        if reason == common_pb2.FINISH_REASON_MAX_LENGTH:
            self._in_chain.cut()
        if self.finish_reason != common_pb2.FINISH_REASON_MAX_LENGTH:
            self.finish_reason = reason
        return reason == common_pb2.FINISH_REASON_MAX_LENGTH and not goes_on

    async def _say(
        self, generation: Generation, frames: Sequence[common_pb2.Frame], shown: str, unit: str, text: SpokenText
    ) -> common_pb2.FinishReason.ValueType:
        """All frames of a generation, which go into the context however it ends."""
        chain = self._in_chain
        first_sample, begin_frame, begin = chain.samples, chain.frames, self.samples
        chain.post(UnitStarted(shown, text.spoken, begin))
        self.units += 1
        try:
            return await self._feed(generation, frames, text.spoken or unit, first_sample)
        finally:  # a turn that is interrupted here has said part of the unit
            said = generation.log.stored(chain.frames - begin_frame)
            self._context.said.append(Segment(self._options.speaker, unit, text.ids, said, self._options.turn, begin))

    async def _open(self, generation: Generation) -> None:
        patience_s = _UNIT_PATIENCE_S if self.units else self._options.patience_s
        if self.is_open:
            await generation.open(patience_s)
            return
        chain = self._in_chain
        try:
            async with asyncio.TaskGroup() as group:
                opening = group.create_task(generation.open(patience_s))
                group.create_task(chain.open(patience_s))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        self.is_open = True
        started = opening.result()
        self._seed = started.seed if self._seed is None else self._seed
        if not self.units:
            self.prompt_tokens = started.prompt_tokens
            chain.post(Started(started.seed, started.prompt_tokens))

    def _request(self, text: SpokenText, max_frames: int, attempt: int) -> backbone_pb2.GenerateRequest:
        sampling = common_pb2.SamplingOptions()
        sampling.CopyFrom(self._options.sampling)
        if self._seed is not None:
            sampling.seed = unit_seed(self._seed, self.units, attempt)
        return backbone_pb2.GenerateRequest(
            prompt=prompt_parts(self._context.segments(), text.ids),
            sampling=sampling,
            max_frames=max_frames,
            chunk_policy=self._chunk_policy(),
        )

    def _chunk_policy(self) -> backbone_pb2.ChunkPolicy:
        """The watermark's look-ahead and opening are at the turn's beginning."""
        policy = backbone_pb2.ChunkPolicy(ramp_frames=self._rules.ramp_frames, held_back_frames=0)
        if not self.units:
            policy.held_back_frames = min(self._stages.held_back_frames, _MAX_HELD_BACK_FRAMES)
            policy.opening_frames = min(self._stages.opening_frames, _MAX_HELD_BACK_FRAMES)
        policy.listener_buffer.FromNanoseconds(round(self._rules.listener_buffer_s * 1e9))
        return policy

    @property
    def _frames_left(self) -> int | None:
        """What is left of the cap on the turn; None: there is no cap."""
        if self._options.max_frames is None:
            return None
        return max(0, self._options.max_frames - self.frames)

    def _room(self, unit: str, text: SpokenText) -> tuple[int, bool]:
        """(most frames for the unit, whether the turn may go on when it takes them all).

        Turns leave the context when there is no room. Raises: InvalidArgument when there is none without them.
        """
        info, positions = self._stages.info, self._positions
        ceiling = self._rules.ending.ceiling_frames(text.spoken or unit, self._rules.frame_rate_hz)
        needed = math.ceil(likely_s(text.spoken or unit) * _LENGTH_SPREAD * self._rules.frame_rate_hz)
        wanted = max(needed, ceiling or 0)
        left = self._frames_left
        if left is not None:
            wanted = min(wanted, left)
        dropped = self._context.make_room(max(0, positions - len(text.ids) - wanted))
        if dropped:
            self._in_chain.post(ContextDropped(dropped))
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
            await self._in_chain.feed(frames)
            frames = await generation.read()
        return generation.finish_reason
