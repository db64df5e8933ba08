"""Waits with a shared timer end as those of asyncio.timeout do."""

from __future__ import annotations

import asyncio
import time

import pytest

from services.runtime.time_limits import TimeLimit


async def test_a_wait_that_is_too_long_ends_in_time():
    began_s = time.monotonic()
    with pytest.raises(TimeoutError):
        with TimeLimit(0.05):
            await asyncio.get_running_loop().create_future()
    assert 0.05 <= time.monotonic() - began_s < 1
    assert not asyncio.current_task().cancelling()


async def test_a_wait_that_ends_in_time_leaves_no_cancellation():
    for _ in range(50):
        with TimeLimit(0.02):
            await asyncio.sleep(0.002)
    await asyncio.sleep(0.05)


async def test_a_shorter_limit_ends_before_one_that_was_there():
    ended = []

    async def wait(seconds):
        try:
            with TimeLimit(seconds):
                await asyncio.get_running_loop().create_future()
        except TimeoutError:
            ended.append(seconds)

    await asyncio.gather(*(wait(seconds) for seconds in (0.15, 0.05, 0.1, 0.02)))
    assert ended == [0.02, 0.05, 0.1, 0.15]


async def test_a_limit_can_be_moved_to_both_sides():
    loop = asyncio.get_running_loop()
    with TimeLimit(0.02) as limit:
        limit.reschedule(loop.time() + 30)
        await asyncio.sleep(0.05)
    with pytest.raises(TimeoutError):
        with TimeLimit(30) as limit:
            limit.reschedule(loop.time() + 0.02)
            await loop.create_future()


async def test_a_limit_moved_after_its_wait_ends_nothing():
    loop = asyncio.get_running_loop()
    with TimeLimit(30) as limit:
        pass
    limit.reschedule(loop.time())
    await asyncio.sleep(0.02)


async def test_who_cancels_the_task_meanwhile_is_heard():
    inside = asyncio.Event()

    async def wait():
        with TimeLimit(30):
            inside.set()
            await asyncio.get_running_loop().create_future()

    task = asyncio.ensure_future(wait())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_cancellation_beside_the_end_of_the_time_wins():
    async def wait():
        with TimeLimit(0.01):
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                task.cancel()

    task = asyncio.ensure_future(wait())
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_error_of_the_wait_passes():
    with pytest.raises(KeyError):
        with TimeLimit(30):
            raise KeyError


async def test_a_limit_that_is_over_waits_no_longer():
    with pytest.raises(TimeoutError):
        with TimeLimit(-1):
            await asyncio.sleep(30)


def test_each_event_loop_has_its_own():
    async def wait():
        with pytest.raises(TimeoutError):
            with TimeLimit(0.01):
                await asyncio.sleep(30)

    asyncio.run(wait())
    asyncio.run(wait())
