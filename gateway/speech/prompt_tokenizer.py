"""Words and clips to what the model's prompt takes, by way of the tokenizer service."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from csm.backbone.v1 import backbone_pb2
from csm.common.v1 import common_pb2
from csm.tokenizer.v1 import tokenizer_pb2

from gateway.speech.context import Segment
from gateway.stages import Stages

# Of one request: a long conversation must not take all permits of the tokenizer by itself.
ENCODINGS_AT_ONCE = 4

Timeout = Callable[[], float]


@dataclass(frozen=True)
class Heard:
    """Something that was said before. field: its path in the caller's request, for errors."""

    speaker: int
    text: str
    audio: common_pb2.AudioClip
    field: str


@dataclass(frozen=True)
class SpokenText:
    """A text as the model reads it, and as the tokenizer's spoken form has it."""

    ids: tuple[int, ...]
    spoken: str


class PromptTokenizer:
    """Of one request or conversation. timeout: seconds left, asked at each call. Methods raise: CallError."""

    def __init__(
        self,
        stages: Stages,
        timeout: Timeout,
        text_normalization: bool = True,
        permits: asyncio.Semaphore | None = None,
    ):
        """permits: for encodings at once, where several of them share them."""
        self._stages, self._timeout, self._normalization = stages, timeout, text_normalization
        self._permits = permits or asyncio.Semaphore(ENCODINGS_AT_ONCE)

    async def text(self, speaker: int, text: str, field: str) -> SpokenText:
        """One text. field: the path of what holds it."""
        return (await self._tokenize([(speaker, text)], [field]))[0]

    async def heard(self, turns: Sequence[Heard]) -> list[Segment]:
        """Segments of the prompt, in order."""
        if not turns:
            return []
        try:
            async with asyncio.TaskGroup() as group:
                fields = [turn.field for turn in turns]
                texts = group.create_task(self._tokenize([(turn.speaker, turn.text) for turn in turns], fields))
                clips = [group.create_task(self._encode(turn)) for turn in turns]
        # Not `except*`: Python before 3.11.4 wraps what is raised there in a group again.
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return [
            Segment(turn.speaker, turn.text, text.ids, clip.result())
            for turn, text, clip in zip(turns, texts.result(), clips, strict=True)
        ]

    async def _tokenize(self, texts: Sequence[tuple[int, str]], fields: Sequence[str]) -> list[SpokenText]:
        request = tokenizer_pb2.TokenizeRequest(
            segments=[
                tokenizer_pb2.TextSegment(speaker=speaker, text=text, text_normalization=self._normalization)
                for speaker, text in texts
            ]
        )
        answer = await self._stages.tokenizer.unary(
            "Tokenize", request, timeout=self._timeout, rename=lambda field: _caller_field(field, fields)
        )
        return [SpokenText(tuple(segment.ids), segment.spoken_text) for segment in answer.segments]

    async def _encode(self, turn: Heard) -> Sequence[common_pb2.Frame]:
        request = tokenizer_pb2.EncodeAudioRequest(audio=turn.audio)
        async with self._permits:
            answer = await self._stages.tokenizer.unary(
                "EncodeAudio", request, timeout=self._timeout, rename=lambda field: f"{turn.field}.{field}"
            )
        return answer.frames


def prompt_parts(segments: Sequence[Segment], ids: Sequence[int]) -> list[backbone_pb2.PromptPart]:
    """What the backbone takes: each segment's text and audio, then the text to speak."""
    parts = []
    for segment in segments:
        parts.append(backbone_pb2.PromptPart(text=backbone_pb2.TextPart(ids=segment.ids)))
        parts.append(backbone_pb2.PromptPart(audio=backbone_pb2.AudioPart(frames=segment.frames)))
    parts.append(backbone_pb2.PromptPart(text=backbone_pb2.TextPart(ids=ids)))
    return parts


def _caller_field(field: str, fields: Sequence[str]) -> str:
    """`segments[i].x` is x of the caller's i-th field."""
    match = re.match(r"segments\[(\d+)\]", field)
    if match is None or int(match[1]) >= len(fields):
        return f"{fields[-1]}.{field}"
    return fields[int(match[1])] + field[match.end() :]
