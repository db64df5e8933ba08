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
        pool=BlockPool(1024),
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


def olds(scheduler, count=4, frames=20):
    """Streams that are far ahead of their listeners."""
    found = [come(scheduler, 0.0, held_back=0) for _ in range(count)]
    steps(scheduler, frames)
    return found


def test_every_second_step_is_the_newcomers_until_he_is_heard():
    scheduler = scheduler_of()
    old = olds(scheduler)
    new = come(scheduler, 0.0, held_back=3)  # in a small step, his prompt alone
    # Three frames are held back, the fourth is heard.
    everyone = [*old, new]
    assert steps(scheduler, 6) == [everyone, [new], everyone, [new], everyone, everyone]


def test_a_stream_that_has_just_begun_is_in_small_steps_until_it_is_ahead():
    scheduler = scheduler_of(slots=10, head_start_s=0.64)
    old = olds(scheduler, count=8)
    young = come(scheduler, 0.0, held_back=0)
    steps(scheduler, 12)
    made_s = young.next_frame * FRAME_S  # audible since 0.0
    new = come(scheduler, made_s - 0.6, held_back=9)
    everyone = [*old, young, new]
    assert steps(scheduler, 3, made_s - 0.6) == [everyone, [new], everyone]  # 0.6 s ahead, then 0.68 and more
    assert steps(scheduler, 2, made_s) == [[young, new], everyone]


def test_beside_many_streams_with_little_in_hand_there_is_no_small_step():
    """The device is near its limit: small steps would put those back."""
    scheduler = scheduler_of(slots=12)
    young = [come(scheduler, 0.0, held_back=0) for _ in range(6)]
    new = come(scheduler, 0.0, held_back=30)
    everyone = [*young, new]
    assert steps(scheduler, 3) == [everyone] * 3
    steps(scheduler, 8)
    assert sorted(steps(scheduler, 2), key=len) == [[new], everyone]  # now those are ahead


def test_a_small_step_is_small():
    scheduler = scheduler_of(slots=12)
    old = olds(scheduler, count=6)
    first, second = (come(scheduler, 0.0, held_back=9) for _ in range(2))
    assert steps(scheduler, 2) == [[first, second], [*old, first, second]]  # two of eight
    third = come(scheduler, 0.0, held_back=9)
    assert steps(scheduler, 3) == [[*old, first, second, third]] * 3


def test_many_newcomers_wait_for_no_small_step():
    scheduler = scheduler_of()
    both = [come(scheduler, 0.0), come(scheduler, 0.0)]
    assert steps(scheduler, 3) == [both] * 3


def test_none_waits_beside_those_who_are_all_heard():
    scheduler = scheduler_of()
    old = olds(scheduler)
    assert steps(scheduler, 3) == [old] * 3


def test_a_prompt_that_is_read_counts_as_a_newcomer():
    """Its first frame comes in the same round: beside a full step it would wait for that."""
    scheduler = scheduler_of()
    olds(scheduler)
    scheduler.submit(Request(None, Sampling(), 10, prefill_tokens=4), 0.0)
    schedule = scheduler.schedule(0.0)
    assert len(schedule.prefill) == 1 and schedule.step == []


def test_all_have_their_turn_however_many_newcomers_there_are():
    scheduler = scheduler_of()
    old = olds(scheduler)
    come(scheduler, 0.0, held_back=64)  # never heard
    assert [old[0] in stepped for stepped in steps(scheduler, 6)] == [True, False] * 3


def test_where_a_step_of_all_takes_no_longer_none_waits():
    scheduler = scheduler_of(flat_slots=5)
    old = olds(scheduler)
    second = come(scheduler, 0.0)
    assert steps(scheduler, 2) == [[*old, second]] * 2
    steps(scheduler, 20)
    third = come(scheduler, 0.0)
    assert steps(scheduler, 2) == [[*old, second, third], [third]]


def test_without_a_head_start_none_waits():
    scheduler = scheduler_of(head_start_s=0)
    old = olds(scheduler)
    new = come(scheduler, 0.0)
    assert steps(scheduler, 2) == [[*old, new]] * 2


def test_a_resumed_stream_is_a_newcomer_until_it_is_heard_again():
    scheduler = scheduler_of()
    old = olds(scheduler)
    resumed = scheduler.submit(
        Request(None, Sampling(), 1000, generated_frames=50, prefill_tokens=60, held_back_frames=1), 0.0
    )
    assert scheduler.schedule(0.0).step == []
    scheduler.on_prefilled(resumed, 0.0)
    assert steps(scheduler, 4) == [[*old, resumed], [resumed], [*old, resumed], [*old, resumed]]
