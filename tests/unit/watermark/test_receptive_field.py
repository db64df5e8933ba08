"""Whole numbers of one stream and of many, by their definitions."""

import numpy as np
import pytest

from services.watermark.embedder import Embedder
from services.watermark.key import PUBLIC_KEY


@pytest.fixture(params=["untrained", "untrained_44k", "pair"])
def field(request):
    return Embedder(request.getfixturevalue(request.param), PUBLIC_KEY).receptive_field


def test_the_fewest_samples_that_complete_columns(field):
    for columns in range(1, 60):
        samples = int(field.min_samples(columns))
        assert field.complete_columns(samples) >= columns > field.complete_columns(samples - 1)


def test_the_fewest_samples_that_anything_comes_out_for(field):
    first = field.first_samples
    assert (
        field.marked_samples(field.complete_columns(first))
        > 0
        >= field.marked_samples(field.complete_columns(first - 1))
    )


@pytest.mark.parametrize("pad", [True, False])
def test_a_first_pass_is_held_back_only_where_passes_are_filled_up(untrained_44k, pad):
    embedder = Embedder(untrained_44k, PUBLIC_KEY, pad=pad)
    assert embedder.first_samples == (embedder.receptive_field.first_samples if pad else 1)
    # A caller who sends its look-ahead is given audio.
    assert embedder.first_samples <= embedder.lookahead_samples + 1


def test_no_stream_can_bring_more_to_a_pass(field):
    """However far it is: what completes no further column than the pass has."""
    for columns in (1, 2, 5, 14):
        for before in range(0, 40):
            first = int(field.min_samples(before)) if before else 0  # as little as a stream at that column has
            last = int(field.min_samples(before + columns + 1)) - 1
            assert last - first <= field.max_samples(columns)


def test_no_samples_complete_more_columns(field):
    for samples in (1, 100, 1920, 15360):
        gains = [
            int(field.complete_columns(before + samples) - field.complete_columns(before))
            for before in range(0, 9000, 13)
        ]
        assert max(gains) <= field.max_columns(samples) <= max(gains) + 1


def test_what_is_kept_of_a_stream_is_not_written_over_too_soon(request):
    """Wherever a stream is between two passes, the longest next one leaves what it and the listener need."""
    embedder = Embedder(request.getfixturevalue("untrained_44k"), PUBLIC_KEY)
    field, most = embedder.receptive_field, 14
    kept = field.history_samples(embedder.lookahead_samples, most)
    for column in range(0, 90):
        for received in (int(field.min_samples(column)) if column else 0, int(field.min_samples(column + 1)) - 1):
            needed = min(int(field.window_start(column)), int(field.marked_samples(column)))
            assert received + field.max_samples(most) - max(0, needed) <= kept


def test_arrays_are_as_each_of_theirs(field):
    numbers = np.arange(0, 5000, 7)
    for name in ("complete_columns", "last_column", "marked_samples", "window_start", "first_block"):
        of_all = getattr(field, name)(numbers)
        assert of_all.tolist() == [int(getattr(field, name)(number)) for number in numbers.tolist()], name
