"""Frames of a stream on their way to passes and back, cut differently at both ends."""

import random

import numpy as np
import pytest

from services.codec.frame_queue import FrameQueue


def give(queue, start, count):
    queue.enqueue(np.arange(start, start + count).reshape(-1, 1))


def test_passes_take_powers_of_two_over_feeds():
    queue, start = FrameQueue(0.08, 0.0), 0
    for count in (3, 1, 7):
        give(queue, start, count)
        start += count
    taken = []
    while queue.queued_frames:
        taken.append(queue.dequeue(queue.next_frames(4), 0.0)[:, 0].tolist())
    assert taken == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9], [10]]


def test_a_feed_counts_for_the_listener_when_the_last_of_it_is_taken():
    queue = FrameQueue(0.5, 7.0)
    give(queue, 0, 3)
    give(queue, 3, 2)
    give(queue, 5, 4)
    deadline_s = []
    for now_s, count in ((10.0, 2), (20.0, 1), (21.0, 4), (22.0, 1), (30.0, 1)):
        queue.dequeue(count, now_s)
        deadline_s.append(queue.deadline.deadline_s)
    # 3 frames from 20 s on; those are out when 2 more are taken; then 4, of which 2 were taken with those.
    assert deadline_s == [7.0, 21.5, 22.5, 22.5, 32.0]


def test_the_time_of_passes_is_told_once():
    queue = FrameQueue(0.08, 0.0)
    give(queue, 0, 2)
    give(queue, 2, 1)
    assert queue.complete(np.zeros(4), 1, 0.25) == []
    (first,) = queue.complete(np.zeros(4), 1, 0.5)
    (second,) = queue.complete(np.zeros(4), 1, 0.125)
    assert (first.compute_s, second.compute_s) == (0.75, 0.125)
    assert first.wait_s >= 0 and len(first.samples) == 8 and len(second.samples) == 4


@pytest.mark.parametrize("seed", range(5))
def test_nothing_is_lost_or_moved(seed):
    chance, queue = random.Random(seed), FrameQueue(0.08, 0.0)
    sizes, heard, given, under_way = [], [], 0, []
    while given < 300 or queue.queued_frames or under_way:
        if given < 300 and chance.random() < 0.5:
            sizes.append(chance.randint(1, 20))
            give(queue, given, sizes[-1])
            given += sizes[-1]
        if queue.queued_frames and chance.random() < 0.6:
            under_way.append(queue.dequeue(queue.next_frames(8), 0.0)[:, 0])
        if under_way and chance.random() < 0.6:
            codes = under_way.pop(0)
            samples = np.repeat(codes, 3).astype(np.float32)  # three samples a frame
            heard += [answer.samples for answer in queue.complete(samples, len(codes), 0.0)]
    assert [len(samples) for samples in heard] == [3 * size for size in sizes]
    assert np.concatenate(heard).tolist() == np.repeat(np.arange(given), 3).tolist()
