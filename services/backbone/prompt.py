"""A prompt's typed parts to the model's tokens. Knows numpy, neither torch nor grpc.

A token has K + 1 columns: K audio codes and one text id; a mask says which count. A text id fills
the last column, a frame the first K. A segment of audio ends with one all-zero frame whose mask
is true, which is what the model itself generates at the end of speech.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from services.backbone.blocks import BLOCK_TOKENS
from services.backbone.prefix_keys import UNUSED, PrefixKeys, next_key


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

    def prefix_keys(self) -> PrefixKeys:
        """Keys of the prompt's blocks: equal keys mean equal tokens and masks up to the block's end."""
        tokens = np.where(self.mask, self.tokens, UNUSED).astype(np.int32)
        full = len(tokens) // BLOCK_TOKENS * BLOCK_TOKENS
        keys, key = [], b""
        for start in range(0, full, BLOCK_TOKENS):
            key = next_key(key, tokens[start : start + BLOCK_TOKENS].tobytes())
            keys.append(key)
        return PrefixKeys(keys, tokens[full:].tobytes())


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

        max_frames: a cap on the utterance, the frames in `generated` included; None is none.
        frame_limit: the server's own cap.
        Returns: the prompt, and the cap in use: the least of these and of what fits.
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
                "prompt",
                f"takes {prompt_tokens} of {self.max_seq_len} tokens, which leaves no room for a frame: "
                f"at most {self.max_seq_len - 1} fit",
            )
        if max_frames is not None and max_frames < 1:
            raise PromptError("max_frames", f"is {max_frames}, must be at least 1")
        frames = min(limit for limit in (room, max_frames, frame_limit) if limit is not None)
        if generated > frames:
            raise PromptError("generated", f"has {generated} frames, at most {frames} may be made")
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
        count = len(frames) * self.codebooks
        array = np.fromiter(chain.from_iterable(frames), np.int64, count).reshape(-1, self.codebooks)
        bad = (array < 0) | (array >= self.codec_bins)
        if bad.any():
            at, column = (int(i) for i in np.argwhere(bad)[0])
            raise PromptError(
                f"{field}[{at}].codes[{column}]", f"is {array[at, column]}, must be below {self.codec_bins}"
            )
        return array
