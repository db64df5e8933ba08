"""How requests and the engine end: cancelled, late, stalled, broken, stopped."""

from __future__ import annotations

import asyncio

import pytest

from services.backbone.blocks import BlockPool
from services.backbone.engine import Engine, EngineStopped
from services.backbone.frame_stream import StreamAborted
from services.backbone.request import FinishReason, Request, Sampling
from services.backbone.scheduler import Scheduler
from support.backbone_engines import Bench, FakeRunner, lists, until

pytestmark = pytest.mark.timeout(30)


async def test_cancel_frees_the_slot_within_one_frame():
    async with Bench(FakeRunner(free=False), slots=1, queue=1) as bench:
        first, second = bench.submit(1, max_frames=1000), bench.submit(2, max_frames=3)
        bench.runner.allow(2)
        await first.read(2)
        steps = sum(event[0] == "step" for event in bench.runner.log)
        first.cancel()
        bench.runner.allow(2)  # one for the step the engine may be in, one for the next
        assert lists(await second.read(1)) == [[2, 1]]
        assert sum(event == ("step", [1]) for event in bench.runner.log) <= steps + 1
        with pytest.raises(StreamAborted) as ended:
            await first.read(1)
        assert ended.value.finish is FinishReason.CANCELLED


async def test_cancel_in_the_queue_and_while_prefilling():
    async with Bench(FakeRunner(free=False, pieces=10_000), slots=1, queue=1) as bench:
        prefilling, waiting = bench.submit(1), bench.submit(2)
        await until(lambda: ("prefill", 1) in bench.runner.log)
        waiting.cancel()
        with pytest.raises(StreamAborted):
            await waiting.prefilled()
        prefilling.cancel()
        with pytest.raises(StreamAborted):
            await prefilling.prefilled()
        await until(lambda: bench.runner.held == {})
        assert ("begin", 2) not in bench.runner.log


async def test_a_deadline_ends_a_request():
    async with Bench(FakeRunner(free=False), slots=1) as bench:
        late = bench.submit(1, deadline_s=bench.engine.now())
        with pytest.raises(StreamAborted) as ended:
            await late.prefilled()
        assert ended.value.finish is FinishReason.DEADLINE


async def test_a_reader_that_never_comes_back_loses_its_slot():
    async with Bench(FakeRunner(), buffer_frames=4, stall_limit_s=0.05) as bench:
        generation = bench.submit(1, max_frames=500)
        await until(lambda: generation.finish is not None)
        assert generation.finish is FinishReason.STALLED
        assert bench.engine.load().slots_active == 0
        with pytest.raises(StreamAborted):
            await generation.read(1)


async def test_a_request_whose_frames_were_all_made_ends_at_once():
    async with Bench(FakeRunner(free=False)) as bench:
        generation = bench.submit(1, max_frames=4, generated=4)
        await generation.prefilled()
        assert await generation.read(1) == [] and generation.finish is FinishReason.MAX_LENGTH
        assert bench.runner.log == []


async def test_a_broken_runner_fails_every_stream_and_the_engine_says_so():
    async with Bench(FakeRunner(free=False), slots=2, queue=5) as bench:
        streams = [bench.submit(number) for number in range(1, 4)]
        await streams[0].prefilled()
        assert bench.engine.is_live(60.0)
        bench.runner.break_next.set()
        bench.runner.allow(1)
        for stream in streams:
            with pytest.raises(StreamAborted) as ended:
                await stream.read(5)
            assert ended.value.finish is FinishReason.FAILED
        await asyncio.to_thread(bench.engine._thread.join)
        assert not bench.engine.is_live(60.0)
        with pytest.raises(EngineStopped, match="device lost"):
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
            beats.add(bench.engine._heartbeat_s)
            await asyncio.sleep(0.05)


async def test_stop_lets_streams_finish_and_takes_no_more():
    bench = Bench(FakeRunner(free=False))
    bench.engine.start()
    generation = bench.submit(1, max_frames=3)
    await generation.prefilled()
    stopping = asyncio.ensure_future(bench.engine.stop(20))
    await until(lambda: bench.engine._stopping)
    with pytest.raises(EngineStopped):
        bench.submit(2)
    bench.runner.allow(3)
    assert lists(await generation.read(5)) == [[1, 1], [1, 2], [1, 3]]
    await stopping


async def test_stop_ends_streams_when_the_grace_is_over():
    bench = Bench(FakeRunner(free=False))
    bench.engine.start()
    generation = bench.submit(1, max_frames=1000)
    await generation.prefilled()
    stopping = asyncio.ensure_future(bench.engine.stop(0))
    await until(lambda: generation.seq.finish is not None)
    bench.runner.allow(1)  # the engine comes out of the step it was in
    with pytest.raises(StreamAborted) as ended:
        await generation.read(1)
    assert ended.value.finish is FinishReason.CANCELLED
    await stopping
    assert not bench.engine._thread.is_alive() and bench.runner.held == {}
