"""Pieces of several callers in one pass: which are batched, and that none is left without a thread."""

import asyncio
import threading

import pytest

from services.engine.batcher import Batcher
from services.engine.loop import DeviceLoop


@pytest.fixture
def pool():
    pool = DeviceLoop("test")
    yield pool
    pool.close()


class Gate:
    """Work that waits for its release, so that items gather behind it."""

    def __init__(self):
        self.began, self.release, self.batches = threading.Event(), threading.Event(), []

    def __call__(self, items):
        self.batches.append(list(items))
        self.began.set()
        assert self.release.wait(10)
        return [ValueError(item) if item < 0 else 10 * item for item in items]


async def gathered(batcher, gate, items):
    """Tasks of `items`, the first of which is being worked on and the rest waiting."""
    tasks = [asyncio.create_task(batcher.run(items[0], 1))]
    assert await asyncio.to_thread(gate.began.wait, 10)
    tasks += [asyncio.create_task(batcher.run(item, item)) for item in items[1:]]
    await asyncio.sleep(0)  # each task is in the queue now
    return tasks


async def test_pieces_that_wait_are_worked_on_together_oldest_first(pool):
    gate = Gate()
    tasks = await gathered(Batcher(gate, pool, 3), gate, [1, 2, 3, 4, 5])
    gate.release.set()
    done = await asyncio.gather(*tasks)
    assert gate.batches == [[1], [2, 3, 4], [5]]
    assert [each.result for each in done] == [10, 20, 30, 40, 50]
    # A pass is shared out by load.
    assert done[2].share_s == pytest.approx(done[2].seconds * 3 / 9)
    assert sum(each.share_s for each in done[1:4]) == pytest.approx(done[1].seconds)


async def test_a_piece_that_fails_fails_alone(pool):
    gate = Gate()
    tasks = await gathered(Batcher(gate, pool, 3), gate, [1, 2, -3, 4])
    gate.release.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results.pop(2), ValueError)
    assert [each.result for each in results] == [10, 20, 40]


async def test_work_that_breaks_off_fails_all_its_pieces(pool):
    def work(items):
        raise RuntimeError("no device")

    with pytest.raises(RuntimeError, match="no device"):
        await Batcher(work, pool, 2).run(1, 1)


async def test_a_cancelled_item_is_skipped_and_no_other(pool):
    gate = Gate()
    tasks = await gathered(Batcher(gate, pool, 1), gate, [1, 2, 3, 4])
    tasks[1].cancel()
    await asyncio.gather(tasks[1], return_exceptions=True)
    gate.release.set()
    assert [each.result for each in await asyncio.gather(tasks[0], *tasks[2:])] == [10, 30, 40]
    assert gate.batches == [[1], [3], [4]]


async def test_the_policy_picks_the_rest_of_a_batch(pool):
    asked = []

    def even(oldest, others):
        asked.append((oldest, list(others)))
        return [index for index, cost in enumerate(others) if cost % 2 == oldest % 2]

    gate = Gate()
    tasks = await gathered(Batcher(gate, pool, 3, even), gate, [1, 2, 3, 4, 6, 5, 8])
    gate.release.set()
    done = await asyncio.gather(*tasks)
    assert gate.batches == [[1], [2, 4, 6], [3, 5], [8]]
    assert [each.batch_size for each in done] == [1, 3, 2, 3, 3, 2, 1]
    assert asked[1] == (2, [3, 4, 6, 5, 8])


async def test_the_most_urgent_go_first_and_of_several_the_oldest(pool):
    gate = Gate()
    batcher = Batcher(gate, pool, 2, lambda first, others: range(len(others)))
    tasks = await gathered(batcher, gate, [1])
    for item, deadline_s in ((2, 9.0), (3, 5.0), (4, 7.0), (5, 5.0), (6, float("-inf")), (7, 8.0)):
        tasks.append(asyncio.create_task(batcher.run(item, 1, deadline_s)))
    await asyncio.sleep(0)
    gate.release.set()
    assert [each.result for each in await asyncio.gather(*tasks)] == [10, 20, 30, 40, 50, 60, 70]
    assert gate.batches == [[1], [6, 3], [5, 4], [7, 2]]


async def test_a_policy_that_fails_fails_the_first_and_the_next_is_served(pool):
    calls = []

    def policy(oldest, others):
        calls.append(oldest)
        if oldest == 2:
            raise ZeroDivisionError
        return range(len(others))

    gate = Gate()
    tasks = await gathered(Batcher(gate, pool, 3, policy), gate, [1, 2, 3, 4])
    gate.release.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results.pop(1), ZeroDivisionError)
    assert [each.result for each in results] == [10, 30, 40]
    assert gate.batches == [[1], [3, 4]]


class Interrupt(BaseException):
    """As little foreseen as a KeyboardInterrupt, which would end the test itself."""


@pytest.mark.parametrize("failure", [Interrupt(), asyncio.CancelledError(), MemoryError(), None])
async def test_a_pass_that_breaks_off_fails_its_own_and_the_next_turn_serves_who_waits(pool, failure):
    gate = Gate()

    def work(items):
        results = gate(items)
        if items[0] != 1:
            return results
        if failure is None:
            return [*results, "one too many"]
        raise failure

    batcher = Batcher(work, pool, 2)
    tasks = await gathered(batcher, gate, [1, 2, 3, 4])
    gate.release.set()
    async with asyncio.timeout(10):
        results = await asyncio.gather(*tasks, return_exceptions=True)
        if failure is None:  # a result for each that there is, and an error for the others
            assert results[0].result == 10
        else:
            assert isinstance(results[0], RuntimeError | MemoryError)
        assert [each.result for each in results[1:]] == [20, 30, 40]
        assert (await batcher.run(5, 1)).result == 50


async def test_a_closed_pool_fails_who_waits():
    pool, gate = DeviceLoop("test"), Gate()
    batcher = Batcher(gate, pool, 1)
    tasks = await gathered(batcher, gate, [1, 2, 3])
    pool.close()
    gate.release.set()
    async with asyncio.timeout(10):
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert results[0].result == 10
    assert [type(each) for each in results[1:]] == [RuntimeError, RuntimeError]


async def test_who_leaves_takes_the_piece_along(pool):
    """So callers who come and go during a long pass do not pile up."""
    gate = Gate()
    batcher = Batcher(gate, pool, 1)
    tasks = await gathered(batcher, gate, [1, 2, 3])
    tasks[1].cancel()
    await asyncio.gather(tasks[1], return_exceptions=True)
    assert [pending.item for pending in batcher._pending] == [3]
    gate.release.set()
    await asyncio.gather(tasks[0], tasks[2])
