"""Frames of a stream on their way to passes and back, cut anew at both ends."""

import random

import numpy as np
import pytest

from services.codec.line import Line


def give(line, start, count):
    line.give(np.arange(start, start + count).reshape(-1, 1))


def test_passes_take_powers_of_two_over_feeds():
    line, start = Line(), 0
    for count in (3, 1, 7):
        give(line, start, count)
        start += count
    taken = []
    while line.waiting:
        taken.append(line.take(line.next_frames(4))[:, 0].tolist())
    assert taken == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9], [10]]


def test_the_time_of_passes_is_told_once():
    line = Line()
    give(line, 0, 2)
    give(line, 2, 1)
    assert line.put(np.zeros(4), 1, 0.25) == []
    (first,) = line.put(np.zeros(4), 1, 0.5)
    (second,) = line.put(np.zeros(4), 1, 0.125)
    assert (first.compute_s, second.compute_s) == (0.75, 0.125)
    assert first.wait_s >= 0 and len(first.samples) == 8 and len(second.samples) == 4


@pytest.mark.parametrize("seed", range(5))
def test_nothing_is_lost_or_moved(seed):
    chance, line = random.Random(seed), Line()
    sizes, heard, given, under_way = [], [], 0, []
    while given < 300 or line.waiting or under_way:
        if given < 300 and chance.random() < 0.5:
            sizes.append(chance.randint(1, 20))
            give(line, given, sizes[-1])
            given += sizes[-1]
        if line.waiting and chance.random() < 0.6:
            under_way.append(line.take(line.next_frames(8))[:, 0])
        if under_way and chance.random() < 0.6:
            codes = under_way.pop(0)
            samples = np.repeat(codes, 3).astype(np.float32)  # three samples a frame
            heard += [answer.samples for answer in line.put(samples, len(codes), 0.0)]
    assert [len(samples) for samples in heard] == [3 * size for size in sizes]
    assert np.concatenate(heard).tolist() == np.repeat(np.arange(given), 3).tolist()
