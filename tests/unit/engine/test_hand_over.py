"""The hand-over to the event loop: in order, a few in each turn, whatever an item does."""

import asyncio
import itertools
import threading

from services.engine.hand_over import HandOver


async def turns_until(done):
    turns = 0
    async with asyncio.timeout(30):
        while not done():
            await asyncio.sleep(0)
            turns += 1
    return turns


async def test_a_burst_is_spread_over_turns_of_the_loop_in_order():
    handled = []
    hand_over = HandOver(handled.append)
    seen = []

    async def other():  # as a new call, which takes several turns
        while len(handled) < 1000:
            seen.append(len(handled))
            await asyncio.sleep(0)

    hand_over.post(range(1000))
    await other()
    assert handled == list(range(1000))
    steps = [after - before for before, after in itertools.pairwise(seen)]
    assert max(steps) <= 1000 // 64 and len(steps) >= 64


async def test_a_few_items_take_one_turn():
    handled = []
    HandOver(handled.append).post(range(8))
    assert await turns_until(lambda: handled) <= 2 and handled == list(range(8))


async def test_items_of_two_threads_keep_each_threads_order():
    handled, posted = [], threading.Barrier(2)
    hand_over = HandOver(handled.append)

    def post(name):
        posted.wait(30)
        for begin in range(0, 400, 100):
            hand_over.post([(name, number) for number in range(begin, begin + 100)])

    await asyncio.gather(asyncio.to_thread(post, "a"), asyncio.to_thread(post, "b"))
    await turns_until(lambda: len(handled) == 800)
    for name in "ab":
        assert [number for who, number in handled if who == name] == list(range(400))


async def test_what_comes_while_a_burst_is_handed_over_waits_behind_it():
    handled = []
    hand_over = HandOver(handled.append)
    hand_over.post(range(100))
    await turns_until(lambda: handled)
    hand_over.post(range(100, 200))
    await turns_until(lambda: len(handled) == 200)
    assert handled == list(range(200))


async def test_an_item_that_raises_leaves_the_others(caplog):
    handled = []

    def handle(number):
        if number == 3:
            raise ValueError("three")
        handled.append(number)

    HandOver(handle).post(range(20))
    await turns_until(lambda: len(handled) == 19)
    assert "ValueError: three" in caplog.text


async def test_an_item_that_is_cancelled_leaves_the_others():
    handled, raised = [], []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: raised.append(context["exception"]))

    def handle(number):
        if number == 3:
            raise asyncio.CancelledError
        handled.append(number)

    HandOver(handle).post(range(20))
    await turns_until(lambda: len(handled) == 19)
    assert [type(error) for error in raised] == [asyncio.CancelledError]


def test_a_closed_loop_takes_nothing():
    async def make():
        return HandOver(print)

    asyncio.run(make()).post([1])
