"""Deadlines and stalls of many requests at once: random events, against a look at every request in every round."""

import random
import struct

import pytest

from services.backbone.blocks import BlockPool
from services.backbone.request import FinishReason, Request, Sampling
from services.backbone.scheduler import QueueFull, Scheduler

STALL_S = 2.0
FRAME = struct.pack("3i", 1, 2, -1)


def submit(scheduler, chance, now):
    deadline_s = chance.choice([None, now, now + 3 * chance.random(), now + 10])
    try:
        return [scheduler.submit(Request(None, Sampling(), chance.randint(1, 40), deadline_s=deadline_s), now)]
    except QueueFull:
        return []


def expiry(seq):
    deadline_s = seq.request.deadline_s
    stalls_s = float("inf") if seq.paused_s is None else seq.paused_s + STALL_S
    return min(stalls_s, float("inf") if deadline_s is None else deadline_s)


@pytest.mark.parametrize("seed", range(4))
def test_each_is_ended_in_the_first_round_after_its_time(seed):
    chance, now, live, ended = random.Random(seed), 0.0, [], []
    scheduler = Scheduler(slots=6, queue_capacity=5, pool=BlockPool(24), buffer_frames=3, stall_limit_s=STALL_S)
    for _ in range(1500):
        now += chance.choice([0.0, 0.01, 0.05, 0.3, 1.0])
        if chance.random() < 0.5:
            live += submit(scheduler, chance, now)
        for seq in live:
            if chance.random() < 0.02:
                scheduler.cancel(seq, now)
            elif chance.random() < 0.3 and seq.unread_frames:
                scheduler.on_read(seq, chance.randint(1, seq.unread_frames))
        late = [seq for seq in live if seq.finish is None and expiry(seq) <= now]
        schedule = scheduler.schedule(now)
        live = [seq for seq in live if seq.finish is None]
        assert all(seq.finish in (FinishReason.DEADLINE, FinishReason.STALLED) for seq in late)
        assert all(expiry(seq) > now for seq in live)
        if schedule.is_idle:
            soonest = min(map(expiry, live), default=float("inf"))
            assert schedule.wait_s == (None if soonest == float("inf") else soonest - now)
        ended += [seq.finish for seq in schedule.ended]
        for seq in schedule.prefill:
            scheduler.on_prefilled(seq, now)
        for seq in schedule.step:
            scheduler.on_frame(seq, FRAME, now)
    assert ended.count(FinishReason.DEADLINE) > 50 and ended.count(FinishReason.STALLED) > 20
