import asyncio

import pytest

from gateway.outlet import Outlet, Window


async def settle():
    """Let every task that can run do so."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_window_holds_back_what_is_too_much():
    window = Window(4)
    await window.enter(3)
    waiting = asyncio.ensure_future(window.enter(2))
    await settle()
    assert not waiting.done()
    window.leave(1)
    await settle()
    assert waiting.done()


async def test_a_batch_larger_than_the_window_goes_alone():
    window = Window(4)
    await window.enter(9)
    waiting = asyncio.ensure_future(window.enter(1))
    await settle()
    assert not waiting.done()
    window.leave(9)
    await asyncio.wait_for(waiting, 1)


async def test_an_outlet_is_bounded_ordered_and_ends():
    outlet = Outlet(2)

    async def fill():
        for item in range(5):
            await outlet.put(item)
        outlet.close()

    filling = asyncio.ensure_future(fill())
    await settle()
    assert len(outlet._items) == 2 and not filling.done()
    assert [await outlet.get() for _ in range(6)] == [0, 1, 2, 3, 4, None]
    await filling


async def test_an_error_overtakes_what_waits_and_the_first_one_counts():
    outlet = Outlet(4)
    await outlet.put(1)
    outlet.fail(KeyError("first"))
    outlet.fail(ValueError("second"))
    with pytest.raises(KeyError):
        await outlet.get()


async def test_an_error_wakes_a_waiting_reader():
    outlet = Outlet(4)
    reading = asyncio.ensure_future(outlet.get())
    await settle()
    outlet.fail(KeyError("gone"))
    with pytest.raises(KeyError):
        await asyncio.wait_for(reading, 1)
