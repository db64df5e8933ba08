"""One turn: its text, unit by unit, through one chain.

Each unit is a generation of its own, whose prompt is the conversation before it, the turn's earlier units included.
Codec and watermark run through the whole turn, so there is no seam. A turn of many minutes gets another chain between
two units now and then: a stage's stream ends with its connection, and a stream that dies is decoded again from its
first frame.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import numpy as np
from csm.common.v1 import common_pb2

from gateway.audit import AuditEntry
from gateway.chain import ResumeBudget, SpeechChain
from gateway.speech.context import Context
from gateway.speech.deadline import Deadline
from gateway.speech.prompt_tokenizer import PromptTokenizer
from gateway.speech.rules import SpeechRules
from gateway.speech.text_source import TextSource
from gateway.speech.turn_events import AudioChunk, TextLate, TurnEvent
from gateway.speech.turn_options import TurnOptions
from gateway.speech.unit_speaker import UnitSpeaker
from gateway.stages import Stages
from gateway.timeline import Timeline
from services.runtime.errors import NOTHING_SPEAKABLE, CallError, InvalidArgument

_LATE_MARGIN_S = 0.15  # before the listener has played all, silence must be on its way
_JOIN_MARGIN_S = 1.0  # before that, a sentence is spoken as it is rather than wait for more to be joined with it
_OPENING_SPREAD = 1.5  # how much longer a unit may take to open than the one before
_KEEP_CHAIN_S = 5.0  # a turn whose text is late for longer gives its slots back until text comes
_CHAIN_S = 240.0  # of audio in one chain; well below a stage's CSM_CONNECTION_GRACE_S


class Turn:
    """`events` may be iterated once. What was said is appended to `context` as it is generated.

    spoken, frames, samples, finish_reason: as far as it has come; whole when `events` has ended.
    """

    def __init__(
        self,
        stages: Stages,
        rules: SpeechRules,
        context: Context,
        text: TextSource,
        tokenizer: PromptTokenizer,
        options: TurnOptions,
        deadline: Deadline,
    ):
        self._stages, self._rules, self._text, self._deadline = stages, rules, text, deadline
        self._options = options
        self._budget = ResumeBudget(rules.resumes)
        self.timeline = Timeline(rules.listener_buffer_s, streamed=options.streamed)
        self._units = UnitSpeaker(
            stages, rules, context, tokenizer, options, self._budget, deadline, self.timeline.output
        )
        self._cut = False
        self._following: str | None = None  # the unit that the next chain begins with
        self._failure: CallError | None = None  # of a unit, once audio of others is on its way
        self._given_samples = 0  # to the caller
        self._playing_until_s = 0.0  # when a listener who plays what comes at once has played it

    @property
    def seed(self) -> int:
        """In use; 0 before there is one."""
        return self._units.seed

    @property
    def prompt_tokens(self) -> int:
        """Of the first unit."""
        return self._units.prompt_tokens

    @property
    def spoken(self) -> list[str]:
        """The spoken form of each unit."""
        return self._units.spoken

    @property
    def frames(self) -> int:
        """Generated and fed so far."""
        return self._units.frames

    @property
    def samples(self) -> int:
        """Of the turn's audio, pauses included."""
        return self._units.samples

    @property
    def finish_reason(self) -> common_pb2.FinishReason.ValueType:
        """Why it ended."""
        return self._units.finish_reason

    async def events(self) -> AsyncGenerator[TurnEvent, None]:
        """Until the speech ends. Close it early and everything upstream is cancelled. Raises: CallError."""
        self.timeline.use_current_span()
        audit, is_whole = self._options.audit, False
        try:
            unit = await self._first_unit()
            while unit is not None:
                async with SpeechChain(
                    self._stages,
                    resumes=self._budget,
                    timeout=self._deadline,
                    on_output=self.timeline.output,
                    on_marked=self._count_audio,
                    on_waited=self.timeline.waited,
                    on_key=audit.add_key if audit is not None else lambda key_id: None,
                    tap=self._units.listen,
                    pauses=not self._text.flushed,
                ) as chain:
                    self._units.enter(chain)
                    chain.spawn(self._speak_units(chain, unit))
                    async for item in chain.output():
                        if isinstance(item, np.ndarray):
                            self._on_given(len(item))
                            if audit is not None:
                                audit.add_audio(item)
                            yield AudioChunk(item)
                        else:
                            yield item
                if self._failure is not None:
                    raise self._failure
                # The text may have come too late for the chain to be kept.
                unit, self._following = self._following, None
                if unit is None and not self._cut:
                    unit = await self._wait_for_unit(None)
            if not self._units.units:
                raise InvalidArgument(
                    f"{self._options.text_path}.text", "has nothing speakable", reason=NOTHING_SPEAKABLE
                )
            is_whole = True
        finally:
            self.timeline.close()
            if audit is not None:
                self._close_audit(audit, is_whole)

    def _close_audit(self, audit: AuditEntry, is_whole: bool) -> None:
        reason = common_pb2.FinishReason.Name(self.finish_reason).removeprefix("FINISH_REASON_")
        audit.close(
            text_sha256=self._text.sha256,
            text_characters=self._text.characters,
            audio_s=round(self.timeline.audio_s, 3),
            finish_reason=reason if is_whole else "BROKEN_OFF",
        )

    def _count_audio(self, samples: int) -> None:
        seconds = samples / self._rules.sample_rate_hz
        self.timeline.audio(seconds)
        self._options.on_audio(seconds)

    async def _first_unit(self) -> str | None:
        is_whole = self._text.flushed
        unit = await self._wait_for_unit(None)
        if not is_whole:  # the speech is asked for when its text is there
            self.timeline.restart(self._text.changed_s)
        return unit

    def _on_given(self, samples: int) -> None:
        self._given_samples += samples
        begin_s = max(self._playing_until_s, asyncio.get_running_loop().time())
        self._playing_until_s = begin_s + samples / self._rules.sample_rate_hz

    async def _speak_units(self, chain: SpeechChain, first: str) -> None:
        """Until the text ends, the turn is cut, no text has come for long, or the chain has had its length."""
        unit: str | None = first
        try:
            while unit is not None and not self._cut:
                self._cut = await self._units.speak(unit)
                unit = None if self._cut else await self._next_unit(chain)
                if chain.frames >= _CHAIN_S * self._rules.frame_rate_hz:
                    self._following, unit = unit, None
        except CallError as error:
            if not chain.frames:
                raise
            # What was said before is heard, with its end, and then the error.
            self._failure = error
            chain.cut()
        if self._units.is_open:
            chain.finish()
        else:
            chain.end()

    async def _next_unit(self, chain: SpeechChain) -> str | None:
        left_s = self._audio_left_s()
        opening_s = _OPENING_SPREAD * self._units.opening_s  # a slow machine needs more
        unit = await self._text.next_unit(
            max(0.0, left_s - max(_LATE_MARGIN_S, opening_s)), max(0.0, left_s - max(_JOIN_MARGIN_S, 2 * opening_s))
        )
        if unit is None and not self._text.done:
            # The watermark keeps its look-ahead until more audio comes: silence pushes the last words out.
            frame = chain.samples_per_frame
            chain.pause(-(-self._lookahead // frame) * frame + frame)
            chain.post(TextLate())
            self._text.hurry()
            unit = await self._wait_for_unit(_KEEP_CHAIN_S)
        return unit

    async def _wait_for_unit(self, patience_s: float | None) -> str | None:
        """The next unit of the text. The time it takes is the caller's."""
        began_s = asyncio.get_running_loop().time()
        unit = await self._text.next_unit(patience_s)
        waited_s = asyncio.get_running_loop().time() - began_s
        self.timeline.waited(waited_s)
        self._deadline.waited(waited_s)
        return unit

    @property
    def _lookahead(self) -> int:
        return self._stages.info.watermark_lookahead_samples if self._stages.info is not None else 0

    def _audio_left_s(self) -> float:
        """What the listener has still to play, of what can reach it before more audio is generated."""
        coming = max(0, self.samples - self._lookahead - self._given_samples)
        left_s = max(0.0, self._playing_until_s - asyncio.get_running_loop().time())
        return left_s + coming / self._rules.sample_rate_hz
