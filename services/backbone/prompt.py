"""A prompt's typed parts to the model's tokens. Knows numpy, neither torch nor grpc.

A token has K + 1 columns: K audio codes and one text id; a mask says which count. A text id fills
the last column, a frame the first K. A segment of audio ends with one all-zero frame whose mask
is true, which is what the model itself generates at the end of speech.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from services.backbone.blocks import BLOCK_TOKENS


class PromptError(ValueError):
    """A prompt that cannot be used. `field` is a path such as `prompt[2].audio.frames[0].codes`."""

    def __init__(self, field: str, description: str):
        super().__init__(f"{field}: {description}")
        self.field, self.description = field, description


@dataclass(frozen=True)
class Text:
    """Token ids of one segment, BOS and EOS included."""

    ids: Sequence[int]


@dataclass(frozen=True)
class Audio:
    """Frames of one segment, without the all-zero frame that ends it."""

    frames: Sequence[Sequence[int]]


@dataclass(frozen=True)
class Prompt:
    """tokens: [T, K + 1] int64. mask: [T, K + 1] bool. The frames already generated come last."""

    tokens: np.ndarray
    mask: np.ndarray
    prompt_tokens: int
    generated_frames: int

    def block_keys(self) -> tuple[bytes, ...]:
        """One key for each full block: equal keys mean equal tokens and masks up to the block's end."""
        tokens, mask = np.where(self.mask, self.tokens, 0), np.packbits(self.mask, axis=1)
        keys, key = [], b""
        for start in range(0, len(tokens) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
            part = slice(start, start + BLOCK_TOKENS)
            key = hashlib.blake2b(key + tokens[part].tobytes() + mask[part].tobytes(), digest_size=32).digest()
            keys.append(key)
        return tuple(keys)


@dataclass(frozen=True)
class PromptLimits:
    """What a model takes: the limits of ids and codes, and its longest sequence."""

    codebooks: int
    text_vocab_size: int
    codec_bins: int
    max_seq_len: int

    def build(
        self,
        parts: Sequence[Text | Audio],
        generated: Sequence[Sequence[int]] = (),
        max_frames: int | None = None,
        frame_limit: int | None = None,
    ) -> tuple[Prompt, int]:
        """Tokens of `parts` and of the frames in `generated`, which an earlier stream made.

        max_frames: frames asked for, those in `generated` included; None is as many as fit.
        frame_limit: the server's own limit on frames.
        Returns: the prompt, and the number of frames it may grow to.
        Raises: PromptError when something is empty, out of range or does not fit.
        """
        if not parts:
            raise PromptError("prompt", "is empty; it must end with a text part")
        if not isinstance(parts[-1], Text):
            raise PromptError(f"prompt[{len(parts) - 1}]", "the last part must be text")
        lengths = [len(part.ids) if isinstance(part, Text) else len(part.frames) + 1 for part in parts]
        prompt_tokens = sum(lengths)
        frames = self._fit(prompt_tokens, len(generated), max_frames, frame_limit)
        tokens = np.zeros((prompt_tokens + len(generated), self.codebooks + 1), dtype=np.int64)
        mask = np.zeros_like(tokens, dtype=bool)
        start = 0
        for index, (part, length) in enumerate(zip(parts, lengths, strict=True)):
            stop = start + length
            if isinstance(part, Text):
                tokens[start:stop, -1] = self._ids(part.ids, f"prompt[{index}].text.ids")
                mask[start:stop, -1] = True
            else:
                tokens[start : stop - 1, :-1] = self._frames(part.frames, f"prompt[{index}].audio.frames")
                mask[start:stop, :-1] = True
            start = stop
        if generated:
            tokens[start:, :-1] = self._frames(generated, "generated")
            mask[start:, :-1] = True
            ends = ~tokens[start:, :-1].any(axis=1)
            if ends.any():
                raise PromptError(f"generated[{int(ends.argmax())}].codes", "an all-zero frame ends speech")
        return Prompt(tokens, mask, prompt_tokens, len(generated)), frames

    def _fit(self, prompt_tokens: int, generated: int, max_frames: int | None, frame_limit: int | None) -> int:
        room = self.max_seq_len - prompt_tokens
        if room < 1:
            raise PromptError(
                "prompt", f"takes {prompt_tokens} tokens, at most {self.max_seq_len - 1} of {self.max_seq_len} fit"
            )
        if max_frames is None:
            frames = room if frame_limit is None else min(room, frame_limit)
        else:
            frames = max_frames
            if frames < 1:
                raise PromptError("max_frames", f"is {frames}, must be at least 1")
            if frame_limit is not None and frames > frame_limit:
                raise PromptError("max_frames", f"is {frames}, must be at most {frame_limit}")
            if frames > room:
                raise PromptError(
                    "max_frames",
                    f"prompt of {prompt_tokens} tokens and max_frames {frames} take {prompt_tokens + frames} tokens, "
                    f"{self.max_seq_len} fit: at most {room} frames",
                )
        if generated > frames:
            raise PromptError("generated", f"has {generated} frames, more than max_frames {frames}")
        return frames

    def _ids(self, ids: Sequence[int], field: str) -> np.ndarray:
        if not len(ids):
            raise PromptError(field, "is empty")
        array = np.asarray(ids, dtype=np.int64)
        bad = (array < 0) | (array >= self.text_vocab_size)
        if bad.any():
            at = int(bad.argmax())
            raise PromptError(f"{field}[{at}]", f"is {array[at]}, must be below {self.text_vocab_size}")
        return array

    def _frames(self, frames: Sequence[Sequence[int]], field: str) -> np.ndarray:
        if not len(frames):
            raise PromptError(field, "is empty")
        for index, frame in enumerate(frames):
            if len(frame) != self.codebooks:
                raise PromptError(f"{field}[{index}].codes", f"has {len(frame)} codes, must have {self.codebooks}")
        array = np.asarray(frames, dtype=np.int64)
        bad = (array < 0) | (array >= self.codec_bins)
        if bad.any():
            at, column = (int(i) for i in np.argwhere(bad)[0])
            raise PromptError(
                f"{field}[{at}].codes[{column}]", f"is {array[at, column]}, must be below {self.codec_bins}"
            )
        return array
