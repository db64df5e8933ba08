"""The worker's thread: who gets which audio, who waits for whom, and what happens when things break. test_order.py: who goes first."""

import asyncio
import threading

import numpy as np
import pytest
import torch

from services.codec.decoder import SlotDecoder
from services.codec.worker import DecodeWorker, WorkerError
from support.fake_decoder import FakeDecoder, frames, hear, held


@pytest.fixture(params=[False, True], ids=["one by one", "overlapping"])
async def decoder(request):
    return FakeDecoder(request.param)


@pytest.fixture
async def worker(decoder):
    worker = DecodeWorker(decoder, frame_s=0.08, max_backlog_frames=16)
    worker.start()
    yield worker
    decoder.gate.set()
    await worker.close()


async def test_one_audio_for_each_feed(worker):
    stream = worker.open()
    for codes in ([1], [2, 3], [4, 5, 6, 7, 8, 9, 10]):
        await stream.feed(frames(*codes))
    stream.finish()
    answers = await hear(stream)
    assert [len(answer.samples) for answer in answers] == [2, 4, 14]
    total = np.concatenate([answer.samples for answer in answers]).reshape(-1, 2)
    assert total[:, 1].tolist() == list(range(1, 11))
    assert total[:, 0].tolist() == np.cumsum(range(1, 11)).tolist()
    assert sum(answer.compute_s for answer in answers) > 0


async def test_an_empty_stream_ends(worker):
    stream = worker.open()
    stream.finish()
    assert await hear(stream) == []


async def test_frames_that_wait_share_passes_by_powers_of_two(worker, decoder):
    first = await held(decoder, worker)
    second, third = worker.open(), worker.open()
    for stream, count in ((first, 11), (second, 8), (third, 3)):
        await stream.feed(frames(*range(count)))
        stream.finish()
    decoder.gate.set()
    await asyncio.gather(*map(hear, (first, second, third)))
    # The held one; then 11 = 8 + 2 + 1 beside 8, which is all of the second, and 3 = 2 + 1.
    assert decoder.passes == [(1, 1), (2, 8), (2, 2), (2, 1)]


async def test_a_slow_reader_stalls_only_itself(worker):
    slow, quick = worker.open(), worker.open()
    fed = 0

    async def feed_slow():
        nonlocal fed
        for i in range(100):
            await slow.feed(frames(i))
            fed += 1

    feeder = asyncio.create_task(feed_slow())
    for i in range(100):
        await quick.feed(frames(i))
        assert len((await anext(quick)).samples) == 2
    assert fed == 16  # max_backlog_frames, and there it stays
    assert not feeder.done()
    for _ in range(84):
        await anext(slow)
    await feeder
    slow.finish()
    assert len(await hear(slow)) == 16


async def test_a_feed_larger_than_the_backlog_passes_when_nothing_else_is_inside(worker):
    stream = worker.open()
    await stream.feed(frames(*range(40)))
    stream.finish()
    assert [len(answer.samples) for answer in await hear(stream)] == [80]


async def test_closing_frees_the_slot_at_once_and_the_next_stream_starts_afresh(worker, decoder):
    gone = await held(decoder, worker)
    others = [worker.open(), worker.open()]
    with pytest.raises(RuntimeError, match="more than 3"):
        worker.open()
    gone.close()  # in the middle of its pass
    assert worker.active == 2
    late = worker.open()
    for stream in (*others, late):
        await stream.feed(frames(5))
        stream.finish()
    decoder.gate.set()
    for stream in (*others, late):
        assert [answer.samples.tolist() for answer in await hear(stream)] == [[5, 5]]
    late.close()
    late.close()
    assert worker.active == 2


async def test_slots_survive_many_short_streams(worker):
    for round_ in range(50):
        streams = [worker.open() for _ in range(3)]
        for i, stream in enumerate(streams):
            await stream.feed(frames(round_, i))
        for i, stream in enumerate(streams):
            if i == round_ % 3:
                stream.close()  # without reading
                continue
            stream.finish()
            (answer,) = await hear(stream)
            assert answer.samples.tolist() == [round_, round_, round_ + i, i]
            stream.close()
    assert worker.active == 0


async def test_a_crash_ends_every_stream_and_the_worker_says_so(worker, decoder):
    streams = [await held(decoder, worker), worker.open()]
    blocked = asyncio.create_task(streams[1].feed(frames(*range(16))))
    await blocked
    blocked = asyncio.create_task(streams[1].feed(frames(1)))
    decoder.error = ValueError("boom")
    decoder.gate.set()
    for stream in streams:
        with pytest.raises(WorkerError, match=r"died \(ValueError: boom\)"):
            await anext(stream)
    with pytest.raises(WorkerError, match="boom"):
        await blocked
    with pytest.raises(WorkerError, match="boom"):
        worker.open()
    assert not worker.is_live()


async def test_a_stuck_pass_is_noticed(decoder):
    worker = DecodeWorker(decoder, frame_s=0.08, stall_s=0.0)
    worker.start()
    assert worker.is_live()  # idle is not stuck
    await held(decoder, worker)
    assert not worker.is_live()
    decoder.gate.set()
    await worker.close()


async def test_a_pass_after_another_is_not_stuck(monkeypatch):
    """The time of one counts, not that of all in a row."""
    now_s = 100.0
    monkeypatch.setattr("services.codec.worker.time.monotonic", lambda: now_s)
    decoder = FakeDecoder(overlaps=True)
    worker = DecodeWorker(decoder, frame_s=0.08, stall_s=30.0)
    worker.start()
    stream = await held(decoder, worker)
    await stream.feed(frames(1))  # so that a pass follows
    now_s = 120.0
    decoder.entered.clear()
    first, decoder.gate = decoder.gate, threading.Event()
    first.set()
    assert await asyncio.to_thread(decoder.entered.wait, 30)
    now_s = 149.0
    assert worker.is_live()
    now_s = 150.0
    assert not worker.is_live()
    decoder.gate.set()
    await worker.close()


async def test_close_ends_streams(decoder):
    worker = DecodeWorker(decoder, frame_s=0.08)
    worker.start()
    stream = worker.open()
    await worker.close()
    with pytest.raises(WorkerError, match="shutting down"):
        await anext(stream)
    with pytest.raises(WorkerError, match="shutting down"):
        worker.open()
    assert not worker.is_live()


async def test_many_streams_through_the_real_decoder(tiny_mimi):
    """Ten streams, three at a time, fed by chunks of 1, 1, 2, 4, 8 …, each equal to one-shot."""
    worker = DecodeWorker(SlotDecoder(tiny_mimi, slots=3), frame_s=0.08, max_backlog_frames=16)
    worker.start()
    places = asyncio.Semaphore(3)

    async def speak(seed):
        codes = np.random.default_rng(seed).integers(0, 32, (20 + seed, 4))
        async with places:
            stream = worker.open()

            async def feed():
                start = 0
                for size in (1, 1, 2, 4, 8, 8, 8):
                    if start < len(codes):
                        await stream.feed(codes[start : start + size])
                        start += size
                stream.finish()

            feeder = asyncio.create_task(feed())
            audio = np.concatenate([answer.samples for answer in await hear(stream)])
            await feeder
            stream.close()
        return codes, audio

    for codes, audio in await asyncio.gather(*map(speak, range(10))):
        with torch.inference_mode():
            whole = tiny_mimi.decode(torch.from_numpy(codes.T.copy())[None])[0, 0].numpy()
        np.testing.assert_allclose(audio, whole, atol=1e-5)
    await worker.close()
