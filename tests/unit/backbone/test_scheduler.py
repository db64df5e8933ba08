"""The scheduler by itself: admission, order, pausing, deadlines, ends."""

from __future__ import annotations

import struct

import pytest

from services.backbone.blocks import BlockPool
from services.backbone.prefix_keys import PrefixKeys
from services.backbone.request import FinishReason, Request, Sampling
from services.backbone.scheduler import QueueFull, Scheduler

FRAME = struct.pack("3i", 1, 2, -1)


def request(max_frames=5, **options):
    return Request(prompt=None, sampling=Sampling(), max_frames=max_frames, **options)


def running(scheduler, count, now=0.0, **options):
    """`count` requests with their prompts in the model."""
    seqs = [scheduler.submit(request(**options), now) for _ in range(count)]
    for seq in scheduler.schedule(now).admitted:
        scheduler.on_prefilled(seq, now)
    return seqs


def test_slots_then_queue_then_refusal():
    scheduler = Scheduler(slots=2, queue_capacity=1, pool=BlockPool(64))
    first, second, third = (scheduler.submit(request(), 0.0) for _ in range(3))
    with pytest.raises(QueueFull) as busy:
        scheduler.submit(request(), 0.0)
    assert busy.value.retry_after_s > 0
    schedule = scheduler.schedule(1.0)
    assert schedule.admitted == [first, second] and schedule.prefill == [first, second] and schedule.step == []
    assert {first.slot, second.slot} == {0, 1} and third.slot is None
    assert (scheduler.active, scheduler.waiting) == (2, 1)
    with pytest.raises(QueueFull):
        scheduler.submit(request(), 1.0)
    assert (first.admitted_s, third.admitted_s) == (1.0, None)


def test_a_freed_slot_goes_to_who_waited_longest():
    scheduler = Scheduler(slots=1, queue_capacity=2, pool=BlockPool(64))
    first, second, third = (scheduler.submit(request(max_frames=1), 0.0) for _ in range(3))
    order = []
    for now in range(1, 4):
        (seq,) = scheduler.schedule(float(now)).admitted
        order.append(seq)
        scheduler.on_prefilled(seq, now)
        assert scheduler.schedule(float(now)).step == [seq]
        assert scheduler.on_frame(seq, FRAME, now) and seq.finish is FinishReason.MAX_LENGTH
    assert order == [first, second, third]


def test_ends():
    scheduler = Scheduler(slots=2, queue_capacity=0, pool=BlockPool(64))
    silent, long = running(scheduler, 2, max_frames=2)
    assert not scheduler.on_frame(silent, None, 1.0)  # the end is not delivered, frame 0 or not
    assert silent.finish is FinishReason.END_OF_SPEECH and silent.next_frame == 0
    assert scheduler.on_frame(long, FRAME, 1.0) and long.finish is None
    assert scheduler.on_frame(long, FRAME, 2.0) and long.finish is FinishReason.MAX_LENGTH
    assert scheduler.active == 0 and long.ended_s == 2.0


def test_frames_of_an_earlier_stream_count():
    scheduler = Scheduler(slots=1, queue_capacity=1, pool=BlockPool(64))
    (seq,) = running(scheduler, 1, max_frames=5, generated_frames=4)
    assert scheduler.on_frame(seq, FRAME, 1.0) and seq.finish is FinishReason.MAX_LENGTH
    done = scheduler.submit(request(max_frames=3, generated_frames=3), 2.0)
    schedule = scheduler.schedule(2.0)
    assert schedule.ended == [done] and schedule.admitted == [] and done.finish is FinishReason.MAX_LENGTH
    assert scheduler.active == 0


def test_cancel_frees_the_slot_at_the_next_schedule():
    scheduler = Scheduler(slots=1, queue_capacity=1, pool=BlockPool(64))
    (seq,) = running(scheduler, 1)
    waiting = scheduler.submit(request(), 0.0)
    scheduler.cancel(seq, 1.0)
    scheduler.cancel(seq, 1.5)  # twice does no harm
    schedule = scheduler.schedule(2.0)
    assert schedule.ended == [seq] and schedule.step == []
    assert schedule.admitted == [waiting] and waiting.slot == seq.slot
    assert scheduler.schedule(2.0).ended == []


def test_cancel_while_waiting():
    scheduler = Scheduler(slots=1, queue_capacity=2, pool=BlockPool(64))
    running(scheduler, 1)
    first, second = scheduler.submit(request(), 0.0), scheduler.submit(request(), 0.0)
    scheduler.cancel(first, 0.5)
    assert scheduler.waiting == 1
    scheduler.submit(request(), 0.6)  # its place is free at once
    assert scheduler.schedule(1.0).ended == [first] and second.finish is None


def test_deadlines_running_and_waiting():
    scheduler = Scheduler(slots=1, queue_capacity=1, pool=BlockPool(64))
    (seq,) = running(scheduler, 1, deadline_s=5.0)
    late = scheduler.submit(request(deadline_s=3.0), 0.0)
    assert scheduler.schedule(2.9).ended == []
    assert scheduler.schedule(3.0).ended == [late]
    schedule = scheduler.schedule(5.0)
    assert schedule.ended == [seq] and schedule.step == []
    assert seq.finish is late.finish is FinishReason.DEADLINE


def test_a_slow_reader_pauses_its_own_slot_alone():
    scheduler = Scheduler(slots=2, queue_capacity=0, pool=BlockPool(64), buffer_frames=2, stall_limit_s=10.0)
    slow, quick = running(scheduler, 2, max_frames=50)

    def steps(now):
        """Who steps; `quick` reads what it gets."""
        stepping = scheduler.schedule(now).step
        for seq in stepping:
            scheduler.on_frame(seq, FRAME, now)
        scheduler.on_read(quick, 1)
        return stepping

    assert [steps(1.0), steps(2.0)] == [[slow, quick], [slow, quick]]
    assert steps(3.0) == [quick]
    assert scheduler.on_read(slow, 1)  # one taken: goes on
    assert steps(4.0) == [slow, quick]
    assert steps(13.9) == [quick]
    assert scheduler.schedule(14.0).ended == [slow] and slow.finish is FinishReason.STALLED


def test_an_idle_plan_says_when_something_expires():
    scheduler = Scheduler(slots=1, queue_capacity=0, pool=BlockPool(64), buffer_frames=1, stall_limit_s=30.0)
    assert scheduler.schedule(0.0).is_idle and scheduler.schedule(0.0).wait_s is None
    (seq,) = running(scheduler, 1, deadline_s=20.0)
    scheduler.on_frame(seq, FRAME, 1.0)
    schedule = scheduler.schedule(2.0)
    assert schedule.is_idle and schedule.wait_s == 18.0


def test_retry_after_follows_how_long_requests_take():
    scheduler = Scheduler(slots=1, queue_capacity=0, pool=BlockPool(64))

    def refused():
        with pytest.raises(QueueFull) as busy:
            scheduler.submit(request(), 0.0)
        return busy.value.retry_after_s

    now = 0.0
    for _ in range(40):
        (seq,) = running(scheduler, 1, now, max_frames=1)
        now += 8.0
        scheduler.on_frame(seq, FRAME, now)
    running(scheduler, 1, now)
    assert refused() == pytest.approx(8.0, rel=0.01)


def test_a_runner_that_is_a_frame_ahead_never_makes_a_frame_too_many():
    scheduler = Scheduler(slots=2, queue_capacity=0, pool=BlockPool(8), buffer_frames=2)
    short, unread = (scheduler.submit(request(max_frames=frames), 0.0) for frames in (2, 50))
    for seq in scheduler.schedule(0.0).admitted:
        scheduler.on_prefilled(seq, 0.0)
    assert scheduler.schedule(1.0).step == [short, unread]
    assert scheduler.schedule(2.0).step == [short, unread]
    assert scheduler.schedule(3.0).step == []  # one has all its frames under way, the other's buffer could fill
    for seq in (short, unread):
        scheduler.on_frame(seq, FRAME, 3.5)
    scheduler.on_read(unread, 1)
    assert scheduler.schedule(4.0).step == [unread]
    scheduler.on_frame(short, FRAME, 4.5)
    assert short.finish is FinishReason.MAX_LENGTH


def test_a_request_that_lacks_blocks_waits_and_is_not_overtaken():
    scheduler = Scheduler(slots=3, queue_capacity=1, pool=BlockPool(4))
    (seq,) = running(scheduler, 1, max_frames=33, prefill_tokens=16)  # 48 tokens, 3 blocks
    large = scheduler.submit(request(max_frames=17, prefill_tokens=16), 0.0)  # 32 tokens, 2 blocks
    assert scheduler.schedule(1.0).admitted == [] and large.table is None
    with pytest.raises(QueueFull, match="all blocks of the cache are in use and 1 requests wait"):
        scheduler.submit(request(max_frames=1), 1.0)  # it would fit, but it came later
    scheduler.cancel(seq, 2.0)
    assert scheduler.schedule(3.0).admitted == [large]
    small = scheduler.submit(request(max_frames=1), 3.0)
    assert scheduler.schedule(3.0).admitted == [small]


def test_a_stream_takes_blocks_as_it_grows_and_gives_all_back():
    pool = BlockPool(8)
    scheduler = Scheduler(slots=1, queue_capacity=0, pool=pool)
    (seq,) = running(scheduler, 1, max_frames=30, prefill_tokens=15)  # 15 + 30 - 1 tokens: 3 blocks
    held = []
    while seq.finish is None:
        assert scheduler.schedule(1.0).step == [seq]
        held.append(len(seq.table.blocks))
        assert pool.used == held[-1] and pool.reserved == 3 - held[-1]
        scheduler.on_frame(seq, FRAME, 1.0)
        scheduler.on_read(seq, 1)
    # frame n is computed with 15 + n tokens in the cache
    assert held == [1] * 2 + [2] * 16 + [3] * 12
    assert (pool.used, pool.reserved) == (0, 0)


def keyed(keys, tokens=None):
    """A request whose prompt fills a block for each key and has five tokens more."""
    return request(prefill_tokens=tokens or 16 * len(keys) + 5, prefix_keys=PrefixKeys(key.encode() for key in keys))


def test_prompts_with_one_prefix_that_arrive_together_are_prefilled_once():
    pool = BlockPool(64)
    scheduler = Scheduler(slots=6, queue_capacity=0, pool=pool)
    first = scheduler.submit(keyed("abc"), 0.0)
    same, longer, alsolonger, other = (scheduler.submit(keyed(keys), 0.0) for keys in ("abc", "abde", "abdf", "xbc"))
    schedule = scheduler.schedule(1.0)
    assert schedule.admitted == schedule.prefill == [first, other]
    assert scheduler.active == 5 and all(seq.slot is not None for seq in (same, longer, alsolonger))
    assert scheduler.schedule(2.0).admitted == []  # nor while it is being prefilled
    scheduler.on_prefilled(first, 3.0)
    schedule = scheduler.schedule(3.0)
    assert schedule.admitted == [same, longer]  # the fourth waits for the third, which prefills what both start with
    assert schedule.prefill == [same, longer, other]  # in order of admission, as ever
    assert (same.table.cached_tokens, same.table.blocks[:3]) == (48, first.table.blocks[:3])
    assert (longer.table.cached_tokens, longer.table.blocks[:2]) == (32, first.table.blocks[:2])
    scheduler.on_prefilled(longer, 4.0)
    (begun,) = scheduler.schedule(4.0).admitted
    assert begun is alsolonger and alsolonger.table.blocks[:3] == longer.table.blocks[:3]
    for seq in (first, same, longer, alsolonger, other):
        scheduler.cancel(seq, 5.0)
    assert (pool.used, pool.reserved, scheduler._prefilling, scheduler._unstarted) == (0, 0, {}, [])


def test_a_prompt_is_shared_piece_by_piece_while_it_is_prefilled():
    pool = BlockPool(64)
    scheduler = Scheduler(slots=4, queue_capacity=0, pool=pool)
    first, same, shorter = (scheduler.submit(keyed(keys), 0.0) for keys in ("abcdef", "abcdef", "abx"))
    assert scheduler.schedule(1.0).admitted == [first]
    scheduler.on_prefill_progress(first, 31)  # the second block lacks a token
    assert scheduler.schedule(1.0).admitted == []
    scheduler.on_prefill_progress(first, 64)
    assert scheduler.schedule(2.0).admitted == [shorter]
    assert (shorter.table.cached_tokens, shorter.table.blocks[:2]) == (32, first.table.blocks[:2])
    scheduler.cancel(first, 3.0)  # what it has computed stays, the rest is for the next one
    assert scheduler.schedule(3.0).admitted == [same] and same.table.cached_tokens == 64
    scheduler.on_prefill_progress(first, 80)  # too late: its blocks are no longer its own
    for seq in (same, shorter):
        scheduler.cancel(seq, 4.0)
    assert (pool.used, pool.reserved, pool.idle, scheduler._prefilling) == (0, 0, 4, {})


def test_a_request_whose_prefix_is_abandoned_prefills_it_itself():
    pool = BlockPool(64)
    scheduler = Scheduler(slots=4, queue_capacity=0, pool=pool)
    first, second, third = (scheduler.submit(keyed("abc"), 0.0) for _ in range(3))
    assert scheduler.schedule(1.0).admitted == [first]
    scheduler.cancel(first, 2.0)
    assert scheduler.schedule(2.0).admitted == [second]
    scheduler.cancel(third, 3.0)  # and one that never began leaves nothing behind
    scheduler.on_prefilled(second, 3.0)
    assert scheduler.schedule(3.0).admitted == [] and second.table.cached_tokens == 0
    scheduler.cancel(second, 4.0)
    assert (pool.used, pool.reserved, scheduler.active, scheduler._prefilling) == (0, 0, 0, {})


def test_generated_frames_are_shared_block_by_block_as_they_are_computed():
    """A prompt of 30 tokens: frames 0 and 1 complete its second block, which the step of frame 2 has computed."""
    pool = BlockPool(64)
    scheduler = Scheduler(slots=2, queue_capacity=0, pool=pool)
    keys = PrefixKeys([b"first"], bytes(12 * 14))
    seq = scheduler.submit(request(max_frames=100, prefill_tokens=30, prefix_keys=keys), 0.0)
    scheduler.schedule(0.0)
    scheduler.on_prefilled(seq, 0.0)
    published = [seq.table.published]
    for _ in range(3 + 16):
        scheduler.schedule(1.0)
        scheduler.on_frame(seq, FRAME, 1.0)
        published.append(seq.table.published)
    assert published == [1] * 3 + [2] * 16 + [3]
    later = scheduler.submit(request(prefill_tokens=60, prefix_keys=seq.prefix_keys), 2.0)
    scheduler.schedule(2.0)
    assert later.table.cached_tokens == 48 and later.table.blocks[:3] == seq.table.blocks[:3]
    scheduler.schedule(3.0)
    scheduler.on_frame(seq, None, 3.0)  # the end of speech computes a token too, and keeps what was shared
    scheduler.cancel(later, 3.0)
    assert (pool.used, pool.reserved, pool.idle) == (0, 0, 3)


def test_without_a_prefix_cache_no_request_waits_for_another():
    scheduler = Scheduler(slots=2, queue_capacity=0, pool=BlockPool(64, prefix_cache=False))
    seqs = [scheduler.submit(keyed("abc"), 0.0) for _ in range(2)]
    assert scheduler.schedule(1.0).admitted == seqs


def test_waiting_for_a_prefix_takes_no_block_that_was_not_reserved():
    """The pool is exactly large enough; what is shared later is given back to it, whatever it evicts meanwhile."""
    pool = BlockPool(8)
    scheduler = Scheduler(slots=3, queue_capacity=3, pool=pool)
    first, second = (scheduler.submit(keyed("abc"), 0.0) for _ in range(2))  # four blocks each with five frames
    scheduler.schedule(1.0)
    assert pool.used + pool.reserved == 8
    scheduler.on_prefilled(first, 1.0)
    assert scheduler.schedule(1.5).admitted == [second]
    assert pool.used + pool.reserved == 5
    third = scheduler.submit(keyed("xyz"), 2.0)
    assert scheduler.schedule(2.0).admitted == [] and third.slot is None  # four blocks, three are left
    scheduler.cancel(first, 3.0)
    assert scheduler.schedule(3.0).admitted == [third]
