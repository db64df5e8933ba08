"""The worker's thread: who gets which audio, who waits for whom, and what happens when things break."""

import asyncio
import threading

import numpy as np
import pytest
import torch

from services.codec.decoder import SlotDecoder
from services.codec.worker import DecodeWorker, WorkerError


class Echo:
    """A decoder whose audio of a frame is two samples: the stream's running sum and the frame's code.

    `gate` holds passes back when it is cleared, their beginning or (overlapping) their end; `passes` remembers (streams, frames) of each,
    `slots_of` the slots.
    """

    max_chunk_frames = 8

    def __init__(self, overlaps=False, slots=3, most_streams=3):
        self.overlaps, self.slots, self.most_streams = overlaps, slots, most_streams
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.passes, self.slots_of = [], []
        self.sums = np.zeros(self.slots)
        self.error = None

    def reset(self, slot):
        self.sums[slot] = 0

    def begin(self, batch):
        if not self.overlaps:
            self._work()
        self.passes.append((len(batch), len(batch[0][1])))
        self.slots_of.append([slot for slot, _ in batch])
        audio = []
        for slot, codes in batch:
            running = self.sums[slot] + np.cumsum(codes[:, 0])
            self.sums[slot] = running[-1]
            audio.append(np.stack([running, codes[:, 0]], axis=1).astype(np.float32).ravel())

        def result():
            if self.overlaps:
                self._work()
            return audio

        return result

    def _work(self):
        gate = self.gate
        self.entered.set()
        assert gate.wait(30)
        if self.error is not None:
            raise self.error


@pytest.fixture(params=[False, True], ids=["one by one", "overlapping"])
async def echo(request):
    return Echo(request.param)


@pytest.fixture
async def worker(echo):
    worker = DecodeWorker(echo, frame_s=0.08, max_backlog_frames=16)
    worker.start()
    yield worker
    echo.gate.set()
    await worker.close()


def frames(*codes):
    return np.array(codes).reshape(-1, 1)


async def hear(stream):
    return [audio async for audio in stream]


async def held(echo, worker):
    """A stream of which one frame is in a pass that does not end until the gate opens."""
    echo.gate.clear()
    echo.entered.clear()
    stream = worker.open()
    await stream.feed(frames(0))
    assert await asyncio.to_thread(echo.entered.wait, 30)
    return stream


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


async def test_frames_that_wait_share_passes_by_powers_of_two(worker, echo):
    first = await held(echo, worker)
    second, third = worker.open(), worker.open()
    for stream, count in ((first, 11), (second, 8), (third, 3)):
        await stream.feed(frames(*range(count)))
        stream.finish()
    echo.gate.set()
    await asyncio.gather(*map(hear, (first, second, third)))
    # The held one; then 11 = 8 + 2 + 1 beside 8, which is all of the second, and 3 = 2 + 1.
    assert echo.passes == [(1, 1), (2, 8), (2, 2), (2, 1)]


async def ahead(worker, count, given):
    """Streams that were given so many frames."""
    streams = [worker.open() for _ in range(count)]
    for stream in streams:
        await stream.feed(frames(*range(given)))
    for stream in streams:
        await anext(stream)
    return streams


@pytest.mark.parametrize("overlaps", [False, True])
async def test_a_first_frame_goes_before_all_who_are_ahead_of_their_listeners(overlaps):
    echo = Echo(overlaps, slots=42, most_streams=16)
    worker = DecodeWorker(echo, frame_s=100.0)
    worker.start()
    far = await ahead(worker, 40, 8)
    holding = await held(echo, worker)
    for stream in far:
        await stream.feed(frames(*range(8)))
    new = worker.open()
    await new.feed(frames(1))
    del echo.passes[:]
    echo.gate.set()
    for stream in (new, *far, holding):
        stream.finish()
        await hear(stream)
    after_the_held_one = echo.passes if overlaps else echo.passes[1:]  # where it is noted as it begins, or later
    assert after_the_held_one == [(1, 1), (16, 8), (16, 8), (8, 8)]
    await worker.close()


async def test_who_runs_dry_first_goes_first_and_nobody_waits_for_ever():
    echo = Echo(slots=3, most_streams=1)
    worker = DecodeWorker(echo, frame_s=100.0)
    worker.start()
    [far] = await ahead(worker, 1, 32)
    [near] = await ahead(worker, 1, 4)
    await held(echo, worker)
    far_slot, near_slot = (slots[0] for slots in echo.slots_of[-2:])
    del echo.slots_of[:]
    await far.feed(frames(*range(8)))
    for _ in range(5):
        await near.feed(frames(*range(8)))
    echo.gate.set()
    for stream in (near, far):
        stream.finish()
        await hear(stream)
    # 4, 12, 20 and 28 frames are less than 32, 36 are not; with 40 the other is behind again.
    order = [slot for [slot] in echo.slots_of if slot in (far_slot, near_slot)]
    assert order == [near_slot] * 4 + [far_slot, near_slot]
    await worker.close()


async def test_a_stream_that_is_short_takes_part_in_a_pass_of_fewer_frames():
    echo = Echo(slots=3, most_streams=3)
    worker = DecodeWorker(echo, frame_s=0.001)
    worker.start()
    [short] = await ahead(worker, 1, 1)
    await held(echo, worker)
    new = worker.open()
    await new.feed(frames(1))
    await short.feed(frames(*range(9)))
    del echo.passes[:]
    echo.gate.set()
    for stream in (new, short):
        stream.finish()
        await hear(stream)
    assert echo.passes == [(1, 1), (2, 1), (1, 8)]
    await worker.close()


async def slots_in_turn(echo, worker, *, feeds):
    """Streams with so many frames each, all there at once: the slots of each pass then."""
    await held(echo, worker)
    streams = [worker.open() for _ in feeds]
    for stream, count in zip(streams, feeds, strict=True):
        await stream.feed(frames(*range(count)))
        stream.finish()
    del echo.slots_of[:]
    echo.gate.set()
    for stream in streams:
        await hear(stream)
    return echo.slots_of[1:]


async def test_a_message_in_several_passes_is_ended_before_others_begin():
    echo = Echo(slots=4, most_streams=1)
    worker = DecodeWorker(echo, frame_s=0.08)
    worker.start()
    turns = await slots_in_turn(echo, worker, feeds=[3, 3, 3])  # 2 + 1 each
    assert turns[0::2] == turns[1::2] and len({slot for [slot] in turns}) == 3
    await worker.close()


async def test_who_ran_dry_goes_before_those_who_came_later():
    echo = Echo(slots=3, most_streams=1)
    worker = DecodeWorker(echo, frame_s=0.0)
    worker.start()
    [dry] = await ahead(worker, 1, 1)
    await held(echo, worker)
    new = worker.open()
    await new.feed(frames(1))
    await dry.feed(frames(1))
    [dry_slot] = echo.slots_of[0]
    del echo.slots_of[:]
    echo.gate.set()
    for stream in (new, dry):
        stream.finish()
        await hear(stream)
    assert echo.slots_of[1] == [dry_slot]  # after the held one
    await worker.close()


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


async def test_closing_frees_the_slot_at_once_and_the_next_stream_starts_afresh(worker, echo):
    gone = await held(echo, worker)
    others = [worker.open(), worker.open()]
    with pytest.raises(RuntimeError, match="more than 3"):
        worker.open()
    gone.close()  # in the middle of its pass
    assert worker.active == 2
    late = worker.open()
    for stream in (*others, late):
        await stream.feed(frames(5))
        stream.finish()
    echo.gate.set()
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


async def test_a_crash_ends_every_stream_and_the_worker_says_so(worker, echo):
    streams = [await held(echo, worker), worker.open()]
    blocked = asyncio.create_task(streams[1].feed(frames(*range(16))))
    await blocked
    blocked = asyncio.create_task(streams[1].feed(frames(1)))
    echo.error = ValueError("boom")
    echo.gate.set()
    for stream in streams:
        with pytest.raises(WorkerError, match=r"died \(ValueError: boom\)"):
            await anext(stream)
    with pytest.raises(WorkerError, match="boom"):
        await blocked
    with pytest.raises(WorkerError, match="boom"):
        worker.open()
    assert not worker.is_live()


async def test_a_stuck_pass_is_noticed(echo):
    worker = DecodeWorker(echo, frame_s=0.08, stall_s=0.0)
    worker.start()
    assert worker.is_live()  # idle is not stuck
    await held(echo, worker)
    assert not worker.is_live()
    echo.gate.set()
    await worker.close()


async def test_a_pass_after_another_is_not_stuck(monkeypatch):
    """The time of one counts, not that of all in a row."""
    now_s = 0.0
    monkeypatch.setattr("services.codec.worker.time.monotonic", lambda: now_s)
    echo = Echo(overlaps=True)
    worker = DecodeWorker(echo, frame_s=0.08, stall_s=30.0)
    worker.start()
    stream = await held(echo, worker)
    await stream.feed(frames(1))  # so that a pass follows
    now_s = 20.0
    echo.entered.clear()
    first, echo.gate = echo.gate, threading.Event()
    first.set()
    assert await asyncio.to_thread(echo.entered.wait, 30)
    now_s = 49.0
    assert worker.is_live()
    now_s = 50.0
    assert not worker.is_live()
    echo.gate.set()
    await worker.close()


async def test_close_ends_streams(echo):
    worker = DecodeWorker(echo, frame_s=0.08)
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
