"""Which clips share a pass."""

import numpy as np
import pytest

from services.tokenizer.batch_policy import batch_policy


@pytest.mark.parametrize(
    "oldest, others, max_samples, expected",
    [
        (100, [], 1000, []),
        (100, [100, 100, 100], 400, [0, 1, 2]),
        (100, [100, 100, 100], 399, [0, 1]),
        (100, [100, 100, 100], 50, []),  # longer than a pass may be: alone
        (100, [90, 300, 100, 40, 120], 1000, [2, 0, 4]),  # the most alike first; too long, too short
        (100, [200, 50], 1000, [0]),  # each is alike enough to the oldest, but not to each other
        (100, [200, 51, 101], 1000, [2, 1]),
        (100, [140, 101, 101], 303, [1, 2]),  # a longer one makes all longer
    ],
)
def test_clips_of_like_length_go_together(oldest, others, max_samples, expected):
    assert batch_policy(oldest, others, max_samples) == expected


def test_no_pass_exceeds_its_bounds():
    draw = np.random.default_rng(0)
    for _ in range(200):
        oldest, *others = draw.integers(1, 3_000_000, draw.integers(1, 40)).tolist()
        max_samples = int(draw.integers(1, 10_000_000))
        chosen = batch_policy(oldest, others, max_samples)
        lengths = [oldest, *(others[index] for index in chosen)]
        assert len(set(chosen)) == len(chosen)
        assert max(lengths) <= 2 * min(lengths)
        assert len(chosen) == 0 or max(lengths) * len(lengths) <= max_samples
