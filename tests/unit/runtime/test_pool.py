"""Threads for work that blocks."""

import asyncio
import threading

from services.runtime.pool import Pool


async def test_a_stuck_thread_is_not_live():
    pool, release = Pool("test", 1, stall_s=0.0), threading.Event()
    entered = threading.Event()

    def job():
        entered.set()
        release.wait(10)

    assert pool.is_live()
    running = asyncio.ensure_future(pool.run(job))
    try:
        await asyncio.to_thread(entered.wait, 10)
        assert not pool.is_live()
    finally:
        release.set()
        await running
        pool.close()
    assert pool.is_live()
