"""The scheduler by itself: admission, order, pausing, deadlines, ends."""

from __future__ import annotations

import pytest

from services.backbone.blocks import BlockPool
from services.backbone.scheduler import Busy, Finish, Request, Sampling, Scheduler

FRAME = [1, 2]
END = [0, 0]


def request(max_frames=5, **options):
    return Request(prompt=None, sampling=Sampling(), max_frames=max_frames, **options)


def running(scheduler, count, now=0.0, **options):
    """`count` requests with their prompts in the model."""
    entries = [scheduler.submit(request(**options), now) for _ in range(count)]
    for entry in scheduler.plan(now).admitted:
        scheduler.prefilled(entry, now)
    return entries


def test_slots_then_queue_then_refusal():
    scheduler = Scheduler(slots=2, queue_capacity=1, pool=BlockPool(64))
    first, second, third = (scheduler.submit(request(), 0.0) for _ in range(3))
    with pytest.raises(Busy) as busy:
        scheduler.submit(request(), 0.0)
    assert busy.value.retry_after_s > 0
    plan = scheduler.plan(1.0)
    assert plan.admitted == [first, second] and plan.prefill == [first, second] and plan.step == []
    assert {first.slot, second.slot} == {0, 1} and third.slot is None
    assert (scheduler.active, scheduler.waiting) == (2, 1)
    with pytest.raises(Busy):
        scheduler.submit(request(), 1.0)
    assert (first.admitted_s, third.admitted_s) == (1.0, None)


def test_a_freed_slot_goes_to_who_waited_longest():
    scheduler = Scheduler(slots=1, queue_capacity=2, pool=BlockPool(64))
    first, second, third = (scheduler.submit(request(max_frames=1), 0.0) for _ in range(3))
    order = []
    for now in range(1, 4):
        (entry,) = scheduler.plan(float(now)).admitted
        order.append(entry)
        scheduler.prefilled(entry, now)
        assert scheduler.plan(float(now)).step == [entry]
        assert scheduler.stepped(entry, FRAME, now) and entry.finish is Finish.MAX_LENGTH
    assert order == [first, second, third]


def test_ends():
    scheduler = Scheduler(slots=2, queue_capacity=0, pool=BlockPool(64))
    silent, long = running(scheduler, 2, max_frames=2)
    assert not scheduler.stepped(silent, END, 1.0)  # the all-zero frame is not delivered, frame 0 or not
    assert silent.finish is Finish.END_OF_SPEECH and silent.next_frame == 0
    assert scheduler.stepped(long, [0, 7], 1.0) and long.finish is None  # codebook 0 alone ends nothing
    assert scheduler.stepped(long, FRAME, 2.0) and long.finish is Finish.MAX_LENGTH
    assert scheduler.active == 0 and long.ended_s == 2.0


def test_frames_of_an_earlier_stream_count():
    scheduler = Scheduler(slots=1, queue_capacity=1, pool=BlockPool(64))
    (entry,) = running(scheduler, 1, max_frames=5, generated_frames=4)
    assert scheduler.stepped(entry, FRAME, 1.0) and entry.finish is Finish.MAX_LENGTH
    done = scheduler.submit(request(max_frames=3, generated_frames=3), 2.0)
    plan = scheduler.plan(2.0)
    assert plan.ended == [done] and plan.admitted == [] and done.finish is Finish.MAX_LENGTH
    assert scheduler.active == 0


def test_cancel_frees_the_slot_at_the_next_plan():
    scheduler = Scheduler(slots=1, queue_capacity=1, pool=BlockPool(64))
    (entry,) = running(scheduler, 1)
    waiting = scheduler.submit(request(), 0.0)
    scheduler.cancel(entry, 1.0)
    scheduler.cancel(entry, 1.5)  # twice does no harm
    plan = scheduler.plan(2.0)
    assert plan.ended == [entry] and plan.step == []
    assert plan.admitted == [waiting] and waiting.slot == entry.slot
    assert scheduler.plan(2.0).ended == []


def test_cancel_while_waiting():
    scheduler = Scheduler(slots=1, queue_capacity=2, pool=BlockPool(64))
    running(scheduler, 1)
    first, second = scheduler.submit(request(), 0.0), scheduler.submit(request(), 0.0)
    scheduler.cancel(first, 0.5)
    assert scheduler.waiting == 1
    scheduler.submit(request(), 0.6)  # its place is free at once
    assert scheduler.plan(1.0).ended == [first] and second.finish is None


def test_deadlines_running_and_waiting():
    scheduler = Scheduler(slots=1, queue_capacity=1, pool=BlockPool(64))
    (entry,) = running(scheduler, 1, deadline_s=5.0)
    late = scheduler.submit(request(deadline_s=3.0), 0.0)
    assert scheduler.plan(2.9).ended == []
    assert scheduler.plan(3.0).ended == [late]
    plan = scheduler.plan(5.0)
    assert plan.ended == [entry] and plan.step == []
    assert entry.finish is late.finish is Finish.DEADLINE


def test_a_slow_reader_pauses_its_own_slot_alone():
    scheduler = Scheduler(slots=2, queue_capacity=0, pool=BlockPool(64), buffer_frames=2, stall_limit_s=10.0)
    slow, quick = running(scheduler, 2, max_frames=50)

    def steps(now):
        """Who steps; `quick` reads what it gets."""
        stepping = scheduler.plan(now).step
        for entry in stepping:
            scheduler.stepped(entry, FRAME, now)
        scheduler.consumed(quick, 1)
        return stepping

    assert [steps(1.0), steps(2.0)] == [[slow, quick], [slow, quick]]
    assert steps(3.0) == [quick]
    assert scheduler.consumed(slow, 1)  # one taken: goes on
    assert steps(4.0) == [slow, quick]
    assert steps(13.9) == [quick]
    assert scheduler.plan(14.0).ended == [slow] and slow.finish is Finish.STALLED


def test_an_idle_plan_says_when_something_expires():
    scheduler = Scheduler(slots=1, queue_capacity=0, pool=BlockPool(64), buffer_frames=1, stall_limit_s=30.0)
    assert scheduler.plan(0.0).is_idle and scheduler.plan(0.0).wait_s is None
    (entry,) = running(scheduler, 1, deadline_s=20.0)
    scheduler.stepped(entry, FRAME, 1.0)
    plan = scheduler.plan(2.0)
    assert plan.is_idle and plan.wait_s == 18.0


def test_retry_after_follows_how_long_requests_take():
    scheduler = Scheduler(slots=1, queue_capacity=0, pool=BlockPool(64))

    def refused():
        with pytest.raises(Busy) as busy:
            scheduler.submit(request(), 0.0)
        return busy.value.retry_after_s

    now = 0.0
    for _ in range(40):
        (entry,) = running(scheduler, 1, now, max_frames=1)
        now += 8.0
        scheduler.stepped(entry, FRAME, now)
    running(scheduler, 1, now)
    assert refused() == pytest.approx(8.0, rel=0.01)


def test_a_runner_that_is_a_frame_ahead_never_makes_a_frame_too_many():
    scheduler = Scheduler(slots=2, queue_capacity=0, pool=BlockPool(8), buffer_frames=2)
    short, unread = (scheduler.submit(request(max_frames=frames), 0.0) for frames in (2, 50))
    for entry in scheduler.plan(0.0).admitted:
        scheduler.prefilled(entry, 0.0)
    assert scheduler.plan(1.0).step == [short, unread]
    assert scheduler.plan(2.0).step == [short, unread]
    assert scheduler.plan(3.0).step == []  # one has all its frames under way, the other's buffer could fill
    for entry in (short, unread):
        scheduler.stepped(entry, FRAME, 3.5)
    scheduler.consumed(unread, 1)
    assert scheduler.plan(4.0).step == [unread]
    scheduler.stepped(short, FRAME, 4.5)
    assert short.finish is Finish.MAX_LENGTH


def test_who_lacks_blocks_waits_and_is_not_overtaken():
    scheduler = Scheduler(slots=3, queue_capacity=1, pool=BlockPool(4))
    (entry,) = running(scheduler, 1, max_frames=33, prompt_rows=16)  # 48 rows, 3 blocks
    large = scheduler.submit(request(max_frames=17, prompt_rows=16), 0.0)  # 32 rows, 2 blocks
    assert scheduler.plan(1.0).admitted == [] and large.table is None
    with pytest.raises(Busy, match="all blocks of the cache and 1 places"):
        scheduler.submit(request(max_frames=1), 1.0)  # it would fit, but it came later
    scheduler.cancel(entry, 2.0)
    assert scheduler.plan(3.0).admitted == [large]
    small = scheduler.submit(request(max_frames=1), 3.0)
    assert scheduler.plan(3.0).admitted == [small]


def test_a_stream_takes_blocks_as_it_grows_and_gives_all_back():
    pool = BlockPool(8)
    scheduler = Scheduler(slots=1, queue_capacity=0, pool=pool)
    (entry,) = running(scheduler, 1, max_frames=30, prompt_rows=15)  # 15 + 30 - 1 rows: 3 blocks
    held = []
    while entry.finish is None:
        assert scheduler.plan(1.0).step == [entry]
        held.append(len(entry.table.blocks))
        assert pool.used == held[-1] and pool.promised == 3 - held[-1]
        scheduler.stepped(entry, FRAME, 1.0)
        scheduler.consumed(entry, 1)
    # frame n is computed with 15 + n rows in the cache
    assert held == [1] * 2 + [2] * 16 + [3] * 12
    assert (pool.used, pool.promised) == (0, 0)


def keyed(keys, rows=None):
    """A request whose prompt fills a block for each key and goes on for five rows."""
    return request(prompt_rows=rows or 16 * len(keys) + 5, block_keys=tuple(key.encode() for key in keys))


def test_prompts_that_begin_alike_and_come_together_are_read_once():
    pool = BlockPool(64)
    scheduler = Scheduler(slots=6, queue_capacity=0, pool=pool)
    first = scheduler.submit(keyed("abc"), 0.0)
    same, longer, alsolonger, other = (scheduler.submit(keyed(keys), 0.0) for keys in ("abc", "abde", "abdf", "xbc"))
    plan = scheduler.plan(1.0)
    assert plan.admitted == plan.prefill == [first, other]
    assert scheduler.active == 5 and all(entry.slot is not None for entry in (same, longer, alsolonger))
    assert scheduler.plan(2.0).admitted == []  # nor while it is being read
    scheduler.prefilled(first, 3.0)
    plan = scheduler.plan(3.0)
    assert plan.admitted == [same, longer]  # the fourth waits for the third, who reads on what both begin with
    assert plan.prefill == [same, longer, other]  # in order of admission, as ever
    assert (same.table.cached_rows, same.table.blocks[:3]) == (48, first.table.blocks[:3])
    assert (longer.table.cached_rows, longer.table.blocks[:2]) == (32, first.table.blocks[:2])
    scheduler.prefilled(longer, 4.0)
    (begun,) = scheduler.plan(4.0).admitted
    assert begun is alsolonger and alsolonger.table.blocks[:3] == longer.table.blocks[:3]
    for entry in (first, same, longer, alsolonger, other):
        scheduler.cancel(entry, 5.0)
    assert (pool.used, pool.promised, scheduler._reading, scheduler._joining) == (0, 0, {}, [])


def test_who_waits_for_a_reader_that_leaves_reads_itself():
    pool = BlockPool(64)
    scheduler = Scheduler(slots=4, queue_capacity=0, pool=pool)
    first, second, third = (scheduler.submit(keyed("abc"), 0.0) for _ in range(3))
    assert scheduler.plan(1.0).admitted == [first]
    scheduler.cancel(first, 2.0)
    assert scheduler.plan(2.0).admitted == [second]
    scheduler.cancel(third, 3.0)  # and one that never began leaves nothing behind
    scheduler.prefilled(second, 3.0)
    assert scheduler.plan(3.0).admitted == [] and second.table.cached_rows == 0
    scheduler.cancel(second, 4.0)
    assert (pool.used, pool.promised, scheduler.active, scheduler._reading) == (0, 0, 0, {})


def test_without_sharing_nobody_waits():
    scheduler = Scheduler(slots=2, queue_capacity=0, pool=BlockPool(64, share_rows=0))
    entries = [scheduler.submit(keyed("abc"), 0.0) for _ in range(2)]
    assert scheduler.plan(1.0).admitted == entries


def test_waiting_for_a_reader_takes_no_block_that_was_not_promised():
    """The pool is exactly large enough; what is shared later is given back to it, whatever it evicts meanwhile."""
    pool = BlockPool(8)
    scheduler = Scheduler(slots=3, queue_capacity=3, pool=pool)
    first, second = (scheduler.submit(keyed("abc"), 0.0) for _ in range(2))  # four blocks each with five frames
    scheduler.plan(1.0)
    assert pool.used + pool.promised == 8
    scheduler.prefilled(first, 1.0)
    assert scheduler.plan(1.5).admitted == [second]
    assert pool.used + pool.promised == 5
    third = scheduler.submit(keyed("xyz"), 2.0)
    assert scheduler.plan(2.0).admitted == [] and third.slot is None  # four blocks, three are left
    scheduler.cancel(first, 3.0)
    assert scheduler.plan(3.0).admitted == [third]
