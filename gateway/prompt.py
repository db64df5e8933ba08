"""A caller's utterance to the backbone's prompt: text ids and context frames, by way of the tokenizer."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass

from csm.backbone.v1 import backbone_pb2
from csm.speech.v1 import speech_pb2
from csm.tokenizer.v1 import tokenizer_pb2

from gateway.stages import Stages

# Of one request: a long conversation must not fill the tokenizer by itself.
ENCODINGS_AT_ONCE = 4


@dataclass(frozen=True)
class Prompt:
    """spoken_text: the words to say, as the tokenizer read the caller's text."""

    parts: list[backbone_pb2.PromptPart]
    spoken_text: str

    @property
    def tokens(self) -> int:
        """Positions that it takes in the model: its text tokens, its frames, and one at the end of each clip."""
        return sum(
            len(part.audio.frames) + 1 if part.WhichOneof("part") == "audio" else len(part.text.ids)
            for part in self.parts
        )


async def build_prompt(stages: Stages, utterance: speech_pb2.Utterance, timeout: Callable[[], float]) -> Prompt:
    """Each context turn's text and audio, oldest first, then the text to speak.

    timeout: seconds left for the request, asked at each call.
    Raises: CallError whose field is the caller's own (`utterance.context[1].audio…`).
    """
    turns = list(utterance.context)
    normalize = utterance.text_normalization if utterance.HasField("text_normalization") else None
    segments = [
        tokenizer_pb2.TextSegment(
            speaker=turn.speaker if turn.HasField("speaker") else 0, text=turn.text, text_normalization=normalize
        )
        for turn in [*turns, utterance]
    ]
    permits = asyncio.Semaphore(ENCODINGS_AT_ONCE)

    async def encode(turn: speech_pb2.ContextSegment, index: int):
        async with permits:
            return await _encode(stages, turn, index, timeout)

    try:
        async with asyncio.TaskGroup() as group:
            text = group.create_task(_tokenize(stages, segments, timeout))
            clips = [group.create_task(encode(turn, index)) for index, turn in enumerate(turns)]
    # Not `except*`: Python before 3.11.4 wraps what is raised there in a group again.
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    parts: list[backbone_pb2.PromptPart] = []
    for segment, clip in zip(text.result(), [*clips, None], strict=True):
        parts.append(backbone_pb2.PromptPart(text=backbone_pb2.TextPart(ids=segment.ids)))
        if clip is not None:
            parts.append(backbone_pb2.PromptPart(audio=backbone_pb2.AudioPart(frames=clip.result())))
    return Prompt(parts, text.result()[-1].spoken_text)


async def _tokenize(stages: Stages, segments: list[tokenizer_pb2.TextSegment], timeout: Callable[[], float]):
    request = tokenizer_pb2.TokenizeRequest(segments=segments)
    answer = await stages.tokenizer.unary("Tokenize", request, timeout=timeout, rename=_text_field(len(segments) - 1))
    return answer.segments


async def _encode(stages: Stages, turn: speech_pb2.ContextSegment, index: int, timeout: Callable[[], float]):
    request = tokenizer_pb2.EncodeAudioRequest(audio=turn.audio)
    answer = await stages.tokenizer.unary(
        "EncodeAudio", request, timeout=timeout, rename=lambda field: f"utterance.context[{index}].{field}"
    )
    return answer.frames


def _text_field(turns: int) -> Callable[[str], str]:
    """`segments[i].x` is context turn i's, or the utterance's own when i is the last."""

    def rename(field: str) -> str:
        match = re.match(r"segments\[(\d+)\]", field)
        if match is None:
            return f"utterance.{field}"
        index = int(match[1])
        owner = "utterance" if index == turns else f"utterance.context[{index}]"
        return owner + field[match.end() :]

    return rename
