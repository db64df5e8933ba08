"""The cache of frames: keyed by content, bounded in bytes, one making for all who ask at once."""

import asyncio

import numpy as np
import pytest

from services.runtime.audio import read_raw, read_wav, wav_bytes
from services.tokenizer.cache import FrameCache, content_key


class Making:
    """A make() that waits for `gate`, and counts."""

    def __init__(self, codes=None, error=None):
        self.codes = np.zeros((10, 8), np.uint16) if codes is None else codes
        self.error, self.calls, self.cancelled = error, 0, 0
        self.gate, self.entered = asyncio.Event(), asyncio.Event()

    async def __call__(self):
        self.calls += 1
        self.entered.set()
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        return self.codes


async def ready(codes):
    return codes


async def never():
    raise AssertionError("should have been in the cache")


def test_the_key_is_the_content():
    samples = np.linspace(-0.5, 0.5, 2400, dtype=np.float32)
    samples = np.rint(samples * 32768) / np.float32(32768)
    limits = {"max_duration_s": 1.0}
    raw = read_raw(samples.tobytes(), encoding="f32le", sample_rate_hz=24000, **limits)
    assert content_key(raw) == content_key(read_wav(wav_bytes(samples, 24000), **limits))
    assert content_key(raw) != content_key(
        read_raw(samples.tobytes(), encoding="f32le", sample_rate_hz=16000, **limits)
    )
    samples[7] += 1e-4
    assert content_key(raw) != content_key(
        read_raw(samples.tobytes(), encoding="f32le", sample_rate_hz=24000, **limits)
    )


async def test_made_once_then_kept():
    cache, codes = FrameCache(10_000), np.ones((3, 8), np.uint16)
    assert await cache.get(b"a", lambda: ready(codes)) == (codes, False)
    kept, cached = await cache.get(b"a", never)
    assert kept is codes and cached


async def test_those_who_ask_at_once_share_the_making():
    cache, making = FrameCache(10_000), Making()
    callers = [asyncio.create_task(cache.get(b"a", making)) for _ in range(5)]
    await making.entered.wait()
    making.gate.set()
    answers = await asyncio.gather(*callers)
    assert making.calls == 1
    assert sorted(cached for _, cached in answers) == [False, True, True, True, True]


async def test_the_first_may_leave_without_harm_to_the_others():
    cache, making = FrameCache(10_000), Making()
    first = asyncio.create_task(cache.get(b"a", making))
    await making.entered.wait()
    second = asyncio.create_task(cache.get(b"a", making))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    making.gate.set()
    codes, cached = await second
    assert codes is making.codes and cached
    assert (making.calls, making.cancelled) == (1, 0)


async def test_when_all_leave_the_making_ends_and_the_next_one_starts_afresh():
    cache, making = FrameCache(10_000), Making()
    callers = [asyncio.create_task(cache.get(b"a", making)) for _ in range(3)]
    await making.entered.wait()
    for caller in callers:
        caller.cancel()
    await asyncio.gather(*callers, return_exceptions=True)
    again = Making()
    again.gate.set()
    assert await cache.get(b"a", again) == (again.codes, False)
    assert (making.cancelled, again.calls) == (1, 1)
    assert (await cache.get(b"a", never))[1]


async def test_errors_reach_all_and_are_not_kept():
    cache, making = FrameCache(10_000), Making(error=RuntimeError("device lost"))
    callers = [asyncio.create_task(cache.get(b"a", making)) for _ in range(2)]
    await making.entered.wait()
    making.gate.set()
    for caller in callers:
        with pytest.raises(RuntimeError, match="device lost"):
            await caller
    codes = np.ones((1, 8), np.uint16)
    assert await cache.get(b"a", lambda: ready(codes)) == (codes, False)


async def test_the_least_recently_used_goes_first():
    codes = {name: np.zeros((50, 10), np.uint16) for name in (b"a", b"b", b"c")}  # 1000 bytes each
    cache = FrameCache(2 * 1256)
    await cache.get(b"a", lambda: ready(codes[b"a"]))
    await cache.get(b"b", lambda: ready(codes[b"b"]))
    await cache.get(b"a", never)
    await cache.get(b"c", lambda: ready(codes[b"c"]))
    assert cache.size_bytes == 2 * 1256
    assert (await cache.get(b"a", never))[1]
    assert (await cache.get(b"c", never))[1]
    assert not (await cache.get(b"b", lambda: ready(codes[b"b"])))[1]
    assert cache.size_bytes <= cache.max_bytes


async def test_what_is_larger_than_the_cache_is_not_kept():
    cache, codes = FrameCache(100), np.zeros((100, 10), np.uint16)
    await cache.get(b"a", lambda: ready(codes))
    assert cache.size_bytes == 0
    assert not (await cache.get(b"a", lambda: ready(codes)))[1]
