"""The engine's thread with a runner that needs no model: what streams get, and in which order."""

from __future__ import annotations

import numpy as np
import pytest

from services.backbone.blocks import BlockPool
from services.backbone.engine import Engine
from services.backbone.newcomers import NewcomersFirst
from services.backbone.request import FinishReason, Request, Sampling
from services.backbone.scheduler import QueueFull, Scheduler
from support.backbone_engines import Bench, FakeRunner, lists, until

pytestmark = pytest.mark.timeout(30)


async def test_frames_then_the_end():
    async with Bench(FakeRunner()) as bench:
        generation = bench.submit(7, max_frames=5)
        await generation.prefilled()
        assert lists(await generation.read(2)) == [[7, 1], [7, 2]]
        assert lists(await generation.read(100)) == [[7, 3], [7, 4], [7, 5]]
        assert generation.finish is FinishReason.MAX_LENGTH
        assert await generation.read(1) == []
        seq = generation.seq
        assert seq.submitted_s <= seq.admitted_s <= seq.prefilled_s <= seq.ended_s
        assert bench.engine.load().slots_active == 0
        assert bench.engine.load().frame_step_s > 0


async def test_ready_counts_what_can_be_read_without_waiting():
    async with Bench(FakeRunner()) as bench:
        generation = bench.submit(7, max_frames=5)
        await until(lambda: generation.ready_frames == 5)
        assert lists(await generation.read(2)) == [[7, 1], [7, 2]]
        assert generation.ready_frames == 3


@pytest.mark.parametrize("end", [0, 3])
async def test_end_of_speech_is_not_delivered(end):
    async with Bench(FakeRunner()) as bench:
        bench.runner.ends[7] = end
        generation = bench.submit(7, max_frames=9)
        assert lists(await generation.read(9)) == [[7, frame + 1] for frame in range(end)]
        assert generation.finish is FinishReason.END_OF_SPEECH


async def test_one_step_serves_all_and_requests_join_between_frames():
    async with Bench(FakeRunner(free=False)) as bench:
        first = bench.submit(1, max_frames=4)
        bench.runner.allow(1)
        assert lists(await first.read(1)) == [[1, 1]]
        second = bench.submit(2, max_frames=2)
        bench.runner.allow(3)
        assert lists(await first.read(3)) == [[1, 2], [1, 3], [1, 4]]
        # Whether or not the engine was inside a step when the second came, it joins the next one.
        assert ("step", [1, 2]) in bench.runner.log
        bench.runner.allow(2)
        assert lists(await second.read(5)) == [[2, 1], [2, 2]]


async def test_a_prompt_that_has_been_read_is_in_the_step_of_the_same_round():
    async with Bench(FakeRunner(free=False)) as bench:
        first = bench.submit(1, max_frames=9)
        await first.prefilled()
        second = bench.submit(2, max_frames=9)
        bench.runner.allow(3)
        await second.read(1)
        log = bench.runner.log
        read = log.index(("prefill", 2))
        assert log[read : read + 2] == [("prefill", 2), ("step", [1, 2])]


async def test_prefill_is_cut_up_between_steps():
    async with Bench(FakeRunner(free=False, pieces=1)) as bench:
        first = bench.submit(1, max_frames=50)
        await first.prefilled()
        bench.runner.pieces = 3
        bench.submit(2)
        bench.runner.allow(6)
        await first.read(6)
        log = bench.runner.log
        joined = log.index(("begin", 2))
        assert log[joined : joined + 6] == [
            ("begin", 2),
            ("prefill", 2),
            ("step", [1]),
            ("prefill", 2),
            ("step", [1]),
            ("prefill", 2),
        ]


async def test_refusal_and_the_queue():
    async with Bench(FakeRunner(free=False), slots=1, queue=1) as bench:
        first, second = bench.submit(1, max_frames=1), bench.submit(2, max_frames=1)
        with pytest.raises(QueueFull) as busy:
            bench.submit(3)
        assert busy.value.retry_after_s > 0
        await first.prefilled()
        assert (bench.engine.load().slots_active, bench.engine.load().queue_depth) == (1, 1)
        bench.runner.allow(2)
        assert lists(await first.read(1)) == [[1, 1]]
        assert lists(await second.read(1)) == [[2, 1]]


async def test_a_slow_reader_stalls_only_itself():
    async with Bench(FakeRunner(), buffer_frames=64) as bench:
        slow, quick = bench.submit(1, max_frames=500), bench.submit(2, max_frames=500)
        frames = []
        while batch := await quick.read(50):
            frames += batch
        assert len(frames) == 500
        await until(lambda: len(slow._frames) == 64)
        assert bench.runner.held[slow.seq.slot][1] == 64  # made no more than its reader may leave unread
        frames = []
        while batch := await slow.read(50):
            frames += lists(batch)
        assert frames == [[1, n + 1] for n in range(500)]


class AheadRunner(FakeRunner):
    """Makes a step when its frames are asked for, as a device that is a step behind its host does."""

    frames_ahead = 1

    def __init__(self):
        super().__init__()
        self.under_way = 0

    def launch(self, slots):
        self.under_way += 1
        assert self.under_way <= 2
        numbers = [list(self.held[slot]) for slot in slots]
        for slot in slots:
            self.held[slot][1] += 1

        def collect():
            self.under_way -= 1
            return np.array([[0, 0] if self.ends.get(n) == frame else [n, frame + 1] for n, frame, _ in numbers])

        return collect


async def test_a_runner_that_is_a_frame_ahead_gives_the_same_streams():
    runner = AheadRunner()
    runner.ends = {number: number * 3 for number in range(1, 10, 2)}
    async with Bench(runner, slots=3, queue=20, buffer_frames=64) as bench:
        generations = {number: bench.submit(number, max_frames=11) for number in range(1, 10)}
        generations[4].cancel()
        for number, generation in generations.items():
            if number == 4:
                continue
            end = min(runner.ends.get(number, 11), 11)
            assert lists(await generation.read(20)) == [[number, frame + 1] for frame in range(end)]
            assert generation.finish is (FinishReason.END_OF_SPEECH if end < 11 else FinishReason.MAX_LENGTH)
        await until(lambda: runner.held == {})
        load = bench.engine.load()
        assert (load.slots_active, load.blocks_used, runner.under_way) == (0, 0, 0)


class TimedRunner(FakeRunner):
    """A step takes a second a slot, by a clock that nothing else moves."""

    now = 0.0

    def step(self, slots):
        frames = super().step(slots)
        self.now += len(slots)
        return frames


async def test_a_small_step_counts_with_the_next_one_of_all():
    """So the time of a step is how often a stream gets a frame."""
    runner, told = TimedRunner(free=False), []
    newcomers = NewcomersFirst(10.0, head_start_s=1.0)
    scheduler = Scheduler(slots=5, queue_capacity=0, pool=BlockPool(256), newcomers=newcomers)
    engine = Engine(runner, scheduler, clock=lambda: runner.now)
    engine.on_step = lambda seconds, seqs: told.append((len(seqs), seconds))
    for number in range(1, 5):
        engine.submit(Request(number, Sampling(), 64, held_back_frames=0))
    engine.start()
    try:
        runner.allow(12)  # some of them with the next one's prompt
        await until(lambda: sum(each[0] == "step" for each in runner.log) == 12)
        engine.submit(Request(5, Sampling(), 64, held_back_frames=64))
        runner.allow(9)
        await until(lambda: runner.log.count(("step", [1, 2, 3, 4, 5])) == 4)
    finally:
        runner.free = True
        runner.allow(1)
        await engine.stop(0)
    assert runner.log.count(("step", [5])) >= 3
    assert [each for each in told if each[0] == 5][:4] == [(5, 6.0)] * 4
