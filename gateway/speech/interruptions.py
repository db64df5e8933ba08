"""What an interrupt does to what was said: the context keeps what was heard, and the words that go with it."""

from __future__ import annotations

from collections.abc import Mapping

from csm.common.v1 import common_pb2
from csm.speech.v1 import speech_pb2

from gateway.speech import converse_events
from gateway.speech.context import Context, Segment
from gateway.speech.converse_items import Interrupt, OwnTurn
from gateway.speech.prompt_tokenizer import PromptTokenizer
from gateway.speech.rules import SpeechRules
from services.runtime.errors import NOTHING_SPEAKABLE, CallError

_INTERRUPTED = common_pb2.FINISH_REASON_INTERRUPTED


class Interruptions:
    """Of one conversation. turns: the last ones, by number. Methods give what the caller gets, and raise CallError."""

    def __init__(self, rules: SpeechRules, context: Context, turns: Mapping[int, OwnTurn]):
        self._rules, self._context, self._turns = rules, context, turns

    async def stop(
        self, last: OwnTurn, interrupt: Interrupt, tokenizer: PromptTokenizer
    ) -> list[speech_pb2.ConverseResponse]:
        """last: the turn that speaks, or the last one; those after the named one were not heard."""
        named = interrupt.own or last
        if named.number > last.number:  # it was still waiting, and is dropped
            return [] if interrupt.keep_later else [await self.cut(last, None, _INTERRUPTED, tokenizer)]
        responses = [await self.cut(named, interrupt.heard_s, _INTERRUPTED, tokenizer)]
        if interrupt.keep_later:
            return responses
        for number in range(named.number + 1, last.number + 1):
            if (later := self._turns.get(number)) is not None and (later is last or later.sent_samples):
                responses.append(await self.cut(later, 0.0, _INTERRUPTED, tokenizer))
        return responses

    async def cut(
        self,
        own: OwnTurn,
        heard_s: float | None,
        reason: common_pb2.FinishReason.ValueType,
        tokenizer: PromptTokenizer,
    ) -> speech_pb2.ConverseResponse:
        """heard_s: how much of the turn's audio the context keeps; None: all that was sent."""
        rules = self._rules
        if heard_s is not None:
            own.sent_samples = min(own.sent_samples, round(heard_s * rules.sample_rate_hz))
        parts = self._context.heard_of(own.number, own.sent_samples, rules.frame_samples, rules.frame_rate_hz)
        heard = "".join(part.text for _, part in parts if part is not None)
        # Another turn may be spoken meanwhile: the context changes at once, when all is there.
        whole = [(segment, await _tokenized(part, tokenizer)) for segment, part in parts]
        for segment, part in whole:
            self._context.replace(segment, part)
        return converse_events.finished(own, reason, heard, rules.sample_rate_hz)


async def _tokenized(part: Segment | None, tokenizer: PromptTokenizer) -> Segment | None:
    """Words that were cut off have new token ids; None: there are none, of a dash, say."""
    if part is None or part.ids:
        return part
    try:
        return part.with_ids((await tokenizer.text(part.speaker, part.text, "append_text")).ids)
    except CallError as error:
        if error.reason != NOTHING_SPEAKABLE:
            raise
        return None
