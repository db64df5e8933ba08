"""Who is in a step while a listener has heard nothing yet."""

from services.backbone.blocks import BlockPool
from services.backbone.newcomers import NewcomersFirst
from services.backbone.request import Request, Sampling
from services.backbone.scheduler import Scheduler

FRAME = bytes(12)
FRAME_S = 0.08


def scheduler_of(slots=8, head_start_s=0.64, **options):
    return Scheduler(
        slots=slots,
        queue_capacity=0,
        pool=BlockPool(256),
        newcomers=NewcomersFirst(FRAME_S, head_start_s=head_start_s, **options),
    )


def come(scheduler, now, held_back=2):
    """A request that has its prompt in the model."""
    seq = scheduler.submit(Request(None, Sampling(), 1000, prefill_tokens=4, held_back_frames=held_back), now)
    schedule = scheduler.schedule(now)
    assert schedule.admitted == [seq] and schedule.prefill == [seq]
    for other in schedule.step:
        scheduler.on_frame(other, FRAME, now)
    scheduler.on_prefilled(seq, now)
    return seq


def step(scheduler, now):
    """Who was in it."""
    stepped = scheduler.schedule(now).step
    for seq in stepped:
        scheduler.on_frame(seq, FRAME, now)
    return stepped


def steps(scheduler, count, now=0.0):
    return [step(scheduler, now) for _ in range(count)]


def test_who_is_ahead_waits_until_the_newcomer_is_heard():
    scheduler = scheduler_of()
    old = come(scheduler, 0.0)
    steps(scheduler, 20)
    new = come(scheduler, 0.0)
    # Two frames are held back, the third is heard.
    assert steps(scheduler, 4) == [[new], [new], [new], [old, new]]


def test_who_is_not_far_ahead_goes_on():
    scheduler = scheduler_of(head_start_s=0.64)
    old = come(scheduler, 0.0, held_back=0)
    steps(scheduler, 12)  # 0.96 s of audio, audible since 0.0
    new = come(scheduler, 0.3)
    assert step(scheduler, 0.3) == [new]  # 0.66 s ahead
    assert step(scheduler, 0.33) == [old, new]  # 0.63 s
    assert step(scheduler, 0.34) == [new]  # another frame was made


def test_none_waits_beside_those_who_are_all_heard():
    scheduler = scheduler_of()
    both = [come(scheduler, 0.0), come(scheduler, 0.0)]
    steps(scheduler, 10)
    assert steps(scheduler, 3) == [both] * 3


def test_a_prompt_that_is_read_counts_as_a_newcomer():
    """Its first frame comes in the same round: beside a full step it would wait for that."""
    scheduler = scheduler_of()
    come(scheduler, 0.0)
    steps(scheduler, 20)
    scheduler.submit(Request(None, Sampling(), 10, prefill_tokens=4), 0.0)
    schedule = scheduler.schedule(0.0)
    assert len(schedule.prefill) == 1 and schedule.step == []


def test_all_have_their_turn_however_many_newcomers_there_are():
    scheduler = scheduler_of(max_steps=3)
    old = come(scheduler, 0.0)
    steps(scheduler, 20)
    come(scheduler, 0.0, held_back=64)  # never heard
    assert [old in stepped for stepped in steps(scheduler, 8)] == [False, False, True, False, False, False, True, False]


def test_where_a_step_of_all_takes_no_longer_none_waits():
    scheduler = scheduler_of(flat_slots=2)
    first = come(scheduler, 0.0)
    steps(scheduler, 20)
    second = come(scheduler, 0.0)
    assert step(scheduler, 0.0) == [first, second]
    steps(scheduler, 20)
    third = come(scheduler, 0.0)
    assert step(scheduler, 0.0) == [third]


def test_without_a_head_start_none_waits():
    scheduler = scheduler_of(head_start_s=0)
    old = come(scheduler, 0.0)
    steps(scheduler, 20)
    new = come(scheduler, 0.0)
    assert step(scheduler, 0.0) == [old, new]


def test_a_resumed_stream_is_a_newcomer_until_it_is_heard_again():
    scheduler = scheduler_of()
    old = come(scheduler, 0.0)
    steps(scheduler, 20)
    resumed = scheduler.submit(
        Request(None, Sampling(), 1000, generated_frames=50, prefill_tokens=60, held_back_frames=1), 0.0
    )
    scheduler.schedule(0.0)
    scheduler.on_prefilled(resumed, 0.0)
    assert steps(scheduler, 3) == [[resumed], [resumed], [old, resumed]]
