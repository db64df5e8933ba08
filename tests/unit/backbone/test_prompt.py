"""Prompt tokens and masks as Sesame lays them out, and every refusal with its field and limit."""

from __future__ import annotations

import numpy as np
import pytest

from services.backbone.prompt import Audio, PromptError, PromptLimits, Text

LIMITS = PromptLimits(codebooks=4, text_vocab_size=100, codec_bins=64, max_seq_len=20)


def test_tokens_and_masks():
    prompt, _ = LIMITS.build([Text([1, 50]), Audio([[1, 2, 3, 4], [0, 0, 0, 0]]), Text([7])])
    # Sesame's layout: audio in columns 0 … K-1, text in column K, an all-zero frame ends audio
    assert prompt.tokens.tolist() == [
        [0, 0, 0, 0, 1],
        [0, 0, 0, 0, 50],
        [1, 2, 3, 4, 0],
        [0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0],
        [0, 0, 0, 0, 7],
    ]
    text, audio = [False] * 4 + [True], [True] * 4 + [False]
    assert prompt.mask.tolist() == [text, text, audio, audio, audio, text]
    assert (prompt.prompt_tokens, prompt.generated_frames) == (6, 0)


def test_generated_frames_follow_the_prompt_without_an_end():
    prompt, _ = LIMITS.build([Text([1])], generated=[[1, 2, 3, 4], [0, 0, 0, 5]])
    assert prompt.tokens[1:].tolist() == [[1, 2, 3, 4, 0], [0, 0, 0, 5, 0]]
    assert prompt.mask[1:].tolist() == [[True] * 4 + [False]] * 2
    assert (prompt.prompt_tokens, prompt.generated_frames) == (1, 2)


@pytest.mark.parametrize(
    ("max_frames", "frame_limit", "frames"),
    [(None, None, 17), (None, 5, 5), (None, 50, 17), (17, 50, 17), (1, 5, 1), (18, 50, 17), (60, None, 17), (9, 8, 8)],
)
def test_the_least_cap_on_frames_holds(max_frames, frame_limit, frames):
    assert LIMITS.build([Text([1, 2, 3])], (), max_frames, frame_limit)[1] == frames


def test_all_frames_may_have_been_generated():
    assert LIMITS.build([Text([1])], [[1, 1, 1, 1]] * 3, max_frames=3)[1] == 3


@pytest.mark.parametrize(
    ("parts", "options", "field", "reason"),
    [
        ([], {}, "prompt", "is empty"),
        ([Text([])], {}, "prompt[0].text.ids", "is empty"),
        ([Audio([[1] * 4])], {}, "prompt[0]", "last part must be text"),
        ([Text([1]), Audio([])], {}, "prompt[1]", "last part must be text"),
        ([Audio([]), Text([1])], {}, "prompt[0].audio.frames", "is empty"),
        ([Text([5, 100])], {}, "prompt[0].text.ids[1]", "is 100, must be below 100"),
        ([Text([-1])], {}, "prompt[0].text.ids[0]", "is -1"),
        ([Audio([[1] * 4, [1] * 3]), Text([1])], {}, "prompt[0].audio.frames[1].codes", "has 3 codes, must have 4"),
        ([Audio([[1, 1, 64, 1]]), Text([1])], {}, "prompt[0].audio.frames[0].codes[2]", "is 64, must be below 64"),
        ([Text([1] * 20)], {}, "prompt", "takes 20 of 20 tokens, which leaves no room for a frame: at most 19 fit"),
        ([Audio([[1] * 4] * 15), Text([1] * 5)], {}, "prompt", "takes 21 of 20 tokens"),
        ([Text([1])], {"max_frames": 0}, "max_frames", "must be at least 1"),
        ([Text([1])], {"max_frames": -3}, "max_frames", "must be at least 1"),
        (
            [Text([1])],
            {"max_frames": 2, "generated": [[1] * 4] * 3},
            "generated",
            "has 3 frames, at most 2 may be made",
        ),
        ([Text([1])], {"generated": [[1] * 5]}, "generated[0].codes", "has 5 codes"),
        ([Text([1])], {"generated": [[1] * 4, [0] * 4]}, "generated[1].codes", "all-zero frame ends speech"),
    ],
)
def test_refusals_name_field_and_limit(parts, options, field, reason):
    with pytest.raises(PromptError) as error:
        LIMITS.build(parts, **options)
    assert error.value.field == field
    assert reason in error.value.description


def test_a_prompt_that_just_fits():
    prompt, frames = LIMITS.build([Text([1] * 19)])
    assert len(prompt.tokens) == 19 and frames == 1
    assert prompt.tokens.dtype == np.int64 and prompt.mask.dtype == bool
