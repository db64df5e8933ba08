"""The device loop: one pass after another in its own threads, results in one hop a pass, failures that end it or do not."""

import asyncio
import gc
import threading
import weakref

import pytest

from services.engine.loop import DeviceLoop, LoopClosed


class Numbers:
    """A source whose passes double the numbers that wait, at most two at once. `gate` holds passes back when cleared."""

    def __init__(self, loop, *, fatal=False):
        self.loop, self.fatal = loop, fatal
        self.waiting, self.log, self.results, self.ended = [], [], [], None
        self.gate, self.entered, self.arrived = threading.Event(), threading.Event(), asyncio.Event()
        self.gate.set()
        loop.serve(self)

    def add(self, *numbers):
        with self.loop.changed:
            self.waiting += numbers
            self.loop.changed.notify()

    def take(self):
        batch, self.waiting = self.waiting[:2], self.waiting[2:]
        return batch or None

    def begin(self, batch):
        self.log.append(("begin", *batch))

        def collect():
            self.entered.set()
            assert self.gate.wait(30)
            if 0 in batch:
                raise ZeroDivisionError
            return [2 * number for number in batch]

        return collect

    def complete(self, batch, output, seconds):
        self.log.append(("complete", *batch))
        assert seconds > 0
        return [lambda: self.receive(output)]

    def fail(self, batch, error):
        if self.fatal:
            raise error
        return [lambda: self.receive([error])]

    def end(self, error):
        self.ended = error
        self.arrived.set()

    def receive(self, output):
        self.results.append((output, threading.current_thread()))
        self.arrived.set()

    async def heard(self, count):
        async with asyncio.timeout(30):
            while sum(len(output) for output, _ in self.results) < count:
                self.arrived.clear()
                await self.arrived.wait()
        return [each for output, _ in self.results for each in output]


@pytest.fixture(params=[False, True], ids=["one by one", "overlapping"])
async def loop(request):
    loop = DeviceLoop("test", overlaps=request.param)
    yield loop
    loop.close()
    await loop.wait_closed()


async def test_results_come_on_the_event_loop_in_one_hop_a_pass(loop):
    source = Numbers(loop)
    source.add(1, 2, 3, 4, 5)
    assert await source.heard(5) == [2, 4, 6, 8, 10]
    assert [len(output) for output, _ in source.results] == [2, 2, 1]
    assert {thread for _, thread in source.results} == {threading.current_thread()}


@pytest.mark.parametrize("overlaps", [False, True])
async def test_an_overlapping_loop_begins_the_next_pass_before_it_delivers_the_last(overlaps):
    loop = DeviceLoop("test", overlaps=overlaps)
    source = Numbers(loop)
    source.add(1, 2, 3, 4)
    await source.heard(4)
    order = [("begin", 1, 2), ("begin", 3, 4), ("complete", 1, 2), ("complete", 3, 4)]
    if not overlaps:
        order[1], order[2] = order[2], order[1]
    assert source.log == order
    loop.close()


async def test_a_pass_that_fails_fails_alone_where_the_source_says_so(loop):
    source = Numbers(loop)
    source.add(1, 2, 0, 3, 4, 5)
    results = await source.heard(5)
    assert [each for each in results if not isinstance(each, Exception)] == [2, 4, 8, 10]
    assert sum(isinstance(each, ZeroDivisionError) for each in results) == 1
    assert loop.is_live() and source.ended is None


async def test_a_failure_that_the_source_raises_ends_the_loop_and_what_waits(loop):
    source = Numbers(loop, fatal=True)
    source.add(0, 1, 2)
    async with asyncio.timeout(30):
        while source.ended is None:
            await source.arrived.wait()
            source.arrived.clear()
    assert isinstance(source.ended, ZeroDivisionError) and source.ended is loop.failure
    assert not loop.is_live()


async def test_closing_delivers_the_running_pass_and_fails_the_rest(loop):
    source = Numbers(loop)
    source.gate.clear()
    source.add(1)
    assert await asyncio.to_thread(source.entered.wait, 30)
    source.add(2)
    loop.close()
    assert isinstance(source.ended, LoopClosed)
    source.gate.set()
    assert await source.heard(1) == [2]
    await loop.wait_closed()
    assert not loop.is_live()


async def test_several_threads_have_a_pass_each():
    loop = DeviceLoop("test", threads=2)
    source = Numbers(loop)
    source.gate.clear()
    for number in (1, 2, 3):
        source.entered.clear()
        source.add(number)
        if number < 3:
            assert await asyncio.to_thread(source.entered.wait, 30)
    assert [each for each in source.log if each[0] == "begin"] == [("begin", 1), ("begin", 2)]
    source.gate.set()
    assert sorted(await source.heard(3)) == [2, 4, 6]
    loop.close()


async def test_a_loop_holds_nothing_of_a_pass_that_is_over():
    """Else the last callers' audio stays in memory until the next ones come."""

    class Seven:
        def __rmul__(self, factor):
            return factor * 7

        def __eq__(self, other):
            return other == 7

    loop = DeviceLoop("test")
    source = Numbers(loop)
    number = Seven()
    gone = weakref.ref(number)
    source.add(number)
    del number
    assert await source.heard(1) == [14]
    source.log.clear()
    async with asyncio.timeout(30):
        while gone() is not None:  # the thread may still be on its way to its next wait
            gc.collect()
            await asyncio.sleep(0)
    loop.close()
