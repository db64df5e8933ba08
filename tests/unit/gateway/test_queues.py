import asyncio

import pytest

from gateway.chain.queues import CreditWindow, OutputQueue


async def settle():
    """Let every task that can run do so."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_window_holds_back_what_is_too_much():
    window = CreditWindow(4)
    await window.acquire(3)
    waiting = asyncio.ensure_future(window.acquire(2))
    await settle()
    assert not waiting.done()
    window.release(1)
    await settle()
    assert waiting.done()


async def test_a_batch_larger_than_the_window_goes_alone():
    window = CreditWindow(4)
    await window.acquire(9)
    waiting = asyncio.ensure_future(window.acquire(1))
    await settle()
    assert not waiting.done()
    window.release(9)
    await asyncio.wait_for(waiting, 1)


async def test_an_queue_is_bounded_ordered_and_ends():
    queue = OutputQueue(2)

    async def fill():
        for item in range(5):
            await queue.put(item)
        queue.close()

    filling = asyncio.ensure_future(fill())
    await settle()
    assert len(queue._items) == 2 and not filling.done()
    assert [await queue.get() for _ in range(6)] == [0, 1, 2, 3, 4, None]
    await filling


async def test_an_error_overtakes_what_waits_and_the_first_one_counts():
    queue = OutputQueue(4)
    await queue.put(1)
    queue.fail(KeyError("first"))
    queue.fail(ValueError("second"))
    with pytest.raises(KeyError):
        await queue.get()


async def test_an_error_wakes_a_waiting_reader():
    queue = OutputQueue(4)
    reading = asyncio.ensure_future(queue.get())
    await settle()
    queue.fail(KeyError("gone"))
    with pytest.raises(KeyError):
        await asyncio.wait_for(reading, 1)
