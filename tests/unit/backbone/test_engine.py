"""The engine's thread with a runner that needs no model: frames are (prompt's number, frame's number)."""

from __future__ import annotations

import asyncio
import threading

import pytest

from services.backbone.blocks import BlockPool
from services.backbone.engine import Engine, Stopping
from services.backbone.generation import GenerationEnded
from services.backbone.scheduler import Busy, Finish, Request, Sampling, Scheduler

pytestmark = pytest.mark.timeout(30)


class FakeRunner:
    """Steps only when a test has allowed it to, unless it runs free."""

    frames_ahead = 0

    def __init__(self, free=True, pieces=1):
        self.free, self.pieces = free, pieces
        self.permits = threading.Semaphore(0)
        self.held: dict[int, list[int]] = {}  # slot → [number, next frame, pieces left]
        self.log: list[tuple] = []
        self.in_step = threading.Event()  # the first step has begun
        self.break_next = threading.Event()
        self.ends: dict[int, int] = {}  # number → frame that ends its speech

    def begin(self, slot, prompt, sampling, table):
        assert slot not in self.held
        self.held[slot] = [prompt, 0, self.pieces]
        self.log.append(("begin", prompt))

    def prefill(self, slots):
        slot = slots[0]
        self.held[slot][2] -= 1
        self.log.append(("prefill", self.held[slot][0]))
        return [slot] if self.held[slot][2] <= 0 else []

    def launch(self, slots):
        frames = self.step(slots)
        return lambda: frames

    def step(self, slots):
        self.in_step.set()
        if not self.free:
            self.permits.acquire()
        if self.break_next.is_set():
            raise RuntimeError("device lost")
        self.log.append(("step", [self.held[slot][0] for slot in slots]))
        frames = []
        for slot in slots:
            number, frame, _ = self.held[slot]
            frames.append([0, 0] if self.ends.get(number) == frame else [number, frame + 1])
            self.held[slot][1] += 1
        return frames

    def release(self, slot):
        self.held.pop(slot, None)

    def allow(self, steps):
        self.permits.release(steps)


class Bench:
    """An engine on a fake runner, stopped at the end of the test."""

    def __init__(self, runner, slots=2, queue=2, **options):
        self.runner = runner
        pool = options.pop("pool", None) or BlockPool(256)
        self.engine = Engine(runner, Scheduler(slots=slots, queue_capacity=queue, pool=pool, **options))

    async def __aenter__(self):
        self.engine.start()
        return self

    async def __aexit__(self, *_):
        self.runner.free = True
        self.runner.allow(1)
        await self.engine.stop(0)
        assert not self.engine._thread.is_alive()
        assert self.runner.held == {} or self.runner.break_next.is_set()

    def submit(self, number, max_frames=5, deadline_s=None, generated=0):
        return self.engine.submit(Request(number, Sampling(), max_frames, generated, deadline_s))


async def until(condition):
    """Let the loop run until `condition` holds; the test's timeout is the limit."""
    while not condition():
        await asyncio.sleep(0)


async def test_frames_then_the_end():
    async with Bench(FakeRunner()) as bench:
        generation = bench.submit(7, max_frames=5)
        await generation.prefilled()
        assert await generation.read(2) == [[7, 1], [7, 2]]
        assert await generation.read(100) == [[7, 3], [7, 4], [7, 5]]
        assert generation.finish is Finish.MAX_LENGTH
        assert await generation.read(1) == []
        entry = generation.entry
        assert entry.submitted_s <= entry.admitted_s <= entry.prefilled_s <= entry.ended_s
        assert bench.engine.load().slots_active == 0
        assert bench.engine.load().frame_step_s > 0


@pytest.mark.parametrize("end", [0, 3])
async def test_end_of_speech_is_not_delivered(end):
    async with Bench(FakeRunner()) as bench:
        bench.runner.ends[7] = end
        generation = bench.submit(7, max_frames=9)
        assert await generation.read(9) == [[7, frame + 1] for frame in range(end)]
        assert generation.finish is Finish.END_OF_SPEECH


async def test_one_step_serves_all_and_requests_join_between_frames():
    async with Bench(FakeRunner(free=False)) as bench:
        first = bench.submit(1, max_frames=4)
        bench.runner.allow(1)
        assert await first.read(1) == [[1, 1]]
        second = bench.submit(2, max_frames=2)
        bench.runner.allow(3)
        assert await first.read(3) == [[1, 2], [1, 3], [1, 4]]
        # The engine was already inside a step when the second came: it joins at the next one.
        assert [entry for entry in bench.runner.log if entry[0] == "step"][-1] == ("step", [1, 2])
        bench.runner.allow(2)
        assert await second.read(5) == [[2, 1], [2, 2]]


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
            ("begin", 2), ("prefill", 2), ("step", [1]), ("prefill", 2), ("step", [1]), ("prefill", 2),
        ]


async def test_refusal_and_the_queue():
    async with Bench(FakeRunner(free=False), slots=1, queue=1) as bench:
        first, second = bench.submit(1, max_frames=1), bench.submit(2, max_frames=1)
        with pytest.raises(Busy) as busy:
            bench.submit(3)
        assert busy.value.retry_after_s > 0
        await first.prefilled()
        assert (bench.engine.load().slots_active, bench.engine.load().queue_depth) == (1, 1)
        bench.runner.allow(2)
        assert await first.read(1) == [[1, 1]]
        assert await second.read(1) == [[2, 1]]


async def test_cancel_frees_the_slot_within_one_frame():
    async with Bench(FakeRunner(free=False), slots=1, queue=1) as bench:
        first, second = bench.submit(1, max_frames=1000), bench.submit(2, max_frames=3)
        bench.runner.allow(2)
        await first.read(2)
        steps = sum(entry[0] == "step" for entry in bench.runner.log)
        first.cancel()
        bench.runner.allow(2)  # one for the step the engine may be in, one for the next
        assert await second.read(1) == [[2, 1]]
        assert sum(entry == ("step", [1]) for entry in bench.runner.log) <= steps + 1
        with pytest.raises(GenerationEnded) as ended:
            await first.read(1)
        assert ended.value.finish is Finish.CANCELLED


async def test_cancel_in_the_queue_and_while_prefilling():
    async with Bench(FakeRunner(free=False, pieces=10_000), slots=1, queue=1) as bench:
        prefilling, waiting = bench.submit(1), bench.submit(2)
        await until(lambda: ("prefill", 1) in bench.runner.log)
        waiting.cancel()
        with pytest.raises(GenerationEnded):
            await waiting.prefilled()
        prefilling.cancel()
        with pytest.raises(GenerationEnded):
            await prefilling.prefilled()
        await until(lambda: bench.runner.held == {})
        assert ("begin", 2) not in bench.runner.log


async def test_a_deadline_ends_a_request():
    async with Bench(FakeRunner(free=False), slots=1) as bench:
        late = bench.submit(1, deadline_s=bench.engine.now())
        with pytest.raises(GenerationEnded) as ended:
            await late.prefilled()
        assert ended.value.finish is Finish.DEADLINE


async def test_a_slow_reader_stalls_only_itself():
    async with Bench(FakeRunner(), buffer_frames=64) as bench:
        slow, quick = bench.submit(1, max_frames=500), bench.submit(2, max_frames=500)
        frames = []
        while batch := await quick.read(50):
            frames += batch
        assert len(frames) == 500
        await until(lambda: len(slow._frames) == 64)
        assert bench.runner.held[slow.entry.slot][1] == 64  # made no more than its reader may leave unread
        frames = []
        while batch := await slow.read(50):
            frames += batch
        assert frames == [[1, n + 1] for n in range(500)]


async def test_a_reader_that_never_comes_back_loses_its_slot():
    async with Bench(FakeRunner(), buffer_frames=4, stall_limit_s=0.05) as bench:
        generation = bench.submit(1, max_frames=500)
        await until(lambda: generation.finish is not None)
        assert generation.finish is Finish.STALLED
        assert bench.engine.load().slots_active == 0
        with pytest.raises(GenerationEnded):
            await generation.read(1)


async def test_a_request_whose_frames_were_all_made_ends_at_once():
    async with Bench(FakeRunner(free=False)) as bench:
        generation = bench.submit(1, max_frames=4, generated=4)
        await generation.prefilled()
        assert await generation.read(1) == [] and generation.finish is Finish.MAX_LENGTH
        assert bench.runner.log == []


async def test_a_broken_runner_fails_every_stream_and_the_engine_says_so():
    async with Bench(FakeRunner(free=False), slots=2, queue=5) as bench:
        streams = [bench.submit(number) for number in range(1, 4)]
        await streams[0].prefilled()
        assert bench.engine.is_live(60.0)
        bench.runner.break_next.set()
        bench.runner.allow(1)
        for stream in streams:
            with pytest.raises(GenerationEnded) as ended:
                await stream.read(5)
            assert ended.value.finish is Finish.FAILED
        await asyncio.to_thread(bench.engine._thread.join)
        assert not bench.engine.is_live(60.0)
        with pytest.raises(Stopping, match="device lost"):
            bench.submit(9)


async def test_a_stuck_engine_is_seen():
    now = [100.0]
    runner = FakeRunner(free=False)
    engine = Engine(runner, Scheduler(slots=1, queue_capacity=0, pool=BlockPool(8)), clock=lambda: now[0])
    engine.start()
    try:
        engine.submit(Request(1, Sampling(), 5))
        await until(runner.in_step.is_set)
        assert engine.is_live(5.0)
        now[0] += 6.0
        assert not engine.is_live(5.0)
    finally:
        runner.free = True
        runner.allow(1)
        await engine.stop(0)


async def test_an_idle_engine_stays_live():
    async with Bench(FakeRunner()) as bench:
        beats = set()
        while len(beats) < 3:  # it comes round by itself
            beats.add(bench.engine._beat_s)
            await asyncio.sleep(0.05)


async def test_stop_lets_streams_finish_and_takes_no_more():
    bench = Bench(FakeRunner(free=False))
    bench.engine.start()
    generation = bench.submit(1, max_frames=3)
    await generation.prefilled()
    stopping = asyncio.ensure_future(bench.engine.stop(20))
    await until(lambda: bench.engine._stopping)
    with pytest.raises(Stopping):
        bench.submit(2)
    bench.runner.allow(3)
    assert await generation.read(5) == [[1, 1], [1, 2], [1, 3]]
    await stopping


async def test_stop_ends_streams_when_the_grace_is_over():
    bench = Bench(FakeRunner(free=False))
    bench.engine.start()
    generation = bench.submit(1, max_frames=1000)
    await generation.prefilled()
    stopping = asyncio.ensure_future(bench.engine.stop(0))
    await until(lambda: generation.entry.finish is not None)
    bench.runner.allow(1)  # the engine comes out of the step it was in
    with pytest.raises(GenerationEnded) as ended:
        await generation.read(1)
    assert ended.value.finish is Finish.CANCELLED
    await stopping
    assert not bench.engine._thread.is_alive() and bench.runner.held == {}


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
            return [[0, 0] if self.ends.get(n) == frame else [n, frame + 1] for n, frame, _ in numbers]

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
            assert await generation.read(20) == [[number, frame + 1] for frame in range(end)]
            assert generation.finish is (Finish.END_OF_SPEECH if end < 11 else Finish.MAX_LENGTH)
        await until(lambda: runner.held == {})
        load = bench.engine.load()
        assert (load.slots_active, load.blocks_used, runner.under_way) == (0, 0, 0)
