"""Whole numbers of one stream and of many, by their definitions."""

import numpy as np
import pytest

from services.watermark.embedder import Embedder
from services.watermark.key import PUBLIC_KEY


@pytest.fixture(params=["untrained", "untrained_44k", "pair"])
def reach(request):
    return Embedder(request.getfixturevalue(request.param), PUBLIC_KEY).reach


def test_the_fewest_samples_that_complete_columns(reach):
    for columns in range(1, 60):
        samples = int(reach.samples(columns))
        assert reach.columns(samples) >= columns > reach.columns(samples - 1)


def test_the_fewest_samples_that_anything_comes_out_for(reach):
    first = reach.first_samples
    assert reach.known(reach.columns(first)) > 0 >= reach.known(reach.columns(first - 1))


@pytest.mark.parametrize("fill", [True, False])
def test_a_first_pass_is_held_back_only_where_passes_are_filled_up(untrained_44k, fill):
    embedder = Embedder(untrained_44k, PUBLIC_KEY, fill=fill)
    assert embedder.first_samples == (embedder.reach.first_samples if fill else 1)
    # A caller who sends its look-ahead is given audio.
    assert embedder.first_samples <= embedder.lookahead_samples + 1


def test_no_stream_can_bring_more_to_a_pass(reach):
    """However far it is: what completes no further column than the pass has."""
    for columns in (1, 2, 5, 14):
        for before in range(0, 40):
            first = int(reach.samples(before)) if before else 0  # as little as a stream at that column has
            last = int(reach.samples(before + columns + 1)) - 1
            assert last - first <= reach.most_samples(columns)


def test_no_samples_complete_more_columns(reach):
    for samples in (1, 100, 1920, 15360):
        gains = [int(reach.columns(before + samples) - reach.columns(before)) for before in range(0, 9000, 13)]
        assert max(gains) <= reach.most_columns(samples) <= max(gains) + 1


def test_what_is_kept_of_a_stream_is_not_written_over_too_soon(request):
    """Wherever a stream is between two passes, the longest next one leaves what it and the listener need."""
    embedder = Embedder(request.getfixturevalue("untrained_44k"), PUBLIC_KEY)
    reach, most = embedder.reach, 14
    kept = reach.kept(embedder.lookahead_samples, most)
    for column in range(0, 90):
        for received in (int(reach.samples(column)) if column else 0, int(reach.samples(column + 1)) - 1):
            needed = min(int(reach.begin(column)), int(reach.known(column)))
            assert received + reach.most_samples(most) - max(0, needed) <= kept


def test_arrays_are_as_each_of_theirs(reach):
    numbers = np.arange(0, 5000, 7)
    for name in ("columns", "last_column", "known", "begin", "first_block"):
        of_all = getattr(reach, name)(numbers)
        assert of_all.tolist() == [int(getattr(reach, name)(number)) for number in numbers.tolist()], name
