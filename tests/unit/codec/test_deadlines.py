"""Of streams that wait for the worker: whose frames are decoded first, and how many at once."""

import itertools
from contextlib import asynccontextmanager

import pytest

from services.codec.worker import DecodeWorker
from support.fake_decoder import FakeDecoder, frames, hear, held


@asynccontextmanager
async def working(frame_s, *, max_batch, slots=4, overlaps=False):
    """(decoder, worker). A microsecond passes each time that the clock is read, however busy the machine is."""
    decoder = FakeDecoder(overlaps, slots=slots, max_batch=max_batch)
    worker = DecodeWorker(decoder, frame_s=frame_s, clock=itertools.count(step=1e-6).__next__)
    worker.start()
    yield decoder, worker
    await worker.close()


async def ahead(worker, count, given):
    """Streams that were given so many frames."""
    streams = [worker.open() for _ in range(count)]
    for stream in streams:
        await stream.feed(frames(*range(given)))
    for stream in streams:
        await anext(stream)
    return streams


async def turns(decoder, streams):
    """Let the held pass end and hear all that waits: the passes after it, as (slots, frames of each)."""
    del decoder.passes[:], decoder.slots_of[:]
    decoder.gate.set()
    for stream in streams:
        stream.finish()
        await hear(stream)
    passes = [(slots, count) for slots, (_, count) in zip(decoder.slots_of, decoder.passes, strict=True)]
    return passes if decoder.overlaps else passes[1:]  # where the held one is noted as it begins, or later


@pytest.mark.parametrize("overlaps", [False, True])
async def test_a_first_frame_goes_before_all_who_are_ahead_of_their_listeners(overlaps):
    async with working(100.0, slots=42, max_batch=16, overlaps=overlaps) as (decoder, worker):
        far = await ahead(worker, 40, 8)
        holding = await held(decoder, worker)
        for stream in far:
            await stream.feed(frames(*range(8)))
        new = worker.open()
        await new.feed(frames(1))
        passes = await turns(decoder, [new, *far, holding])
        assert [(len(slots), count) for slots, count in passes] == [(1, 1), (16, 8), (16, 8), (8, 8)]


async def test_who_runs_dry_first_goes_first_and_nobody_waits_for_ever():
    async with working(100.0, max_batch=1) as (decoder, worker):
        [far] = await ahead(worker, 1, 32)
        [near] = await ahead(worker, 1, 4)
        [far_slot], [near_slot] = decoder.slots_of[-2:]
        await held(decoder, worker)
        await far.feed(frames(*range(8)))
        for _ in range(5):
            await near.feed(frames(*range(8)))
        order = [slot for [slot], _ in await turns(decoder, [near, far])]
        # 4, 12, 20 and 28 frames are less than 32, 36 are not; with 40 the other is behind again.
        assert order == [near_slot] * 4 + [far_slot, near_slot]


async def test_a_stream_that_is_short_takes_part_in_a_pass_of_fewer_frames():
    async with working(0.3, max_batch=3) as (decoder, worker):
        [short] = await ahead(worker, 1, 1)
        await held(decoder, worker)
        new = worker.open()
        await new.feed(frames(1))
        await short.feed(frames(*range(9)))
        passes = await turns(decoder, [new, short])
        assert [(len(slots), count) for slots, count in passes] == [(2, 1), (1, 8)]


async def test_a_message_in_several_passes_is_ended_before_others_begin():
    async with working(0.08, max_batch=1) as (decoder, worker):
        await held(decoder, worker)
        streams = [worker.open() for _ in range(3)]
        for stream in streams:
            await stream.feed(frames(1, 2, 3))
        passes = await turns(decoder, streams)
        assert [count for _, count in passes] == [2, 1] * 3
        assert [slots for slots, _ in passes[0::2]] == [slots for slots, _ in passes[1::2]]
        assert len({slot for [slot], _ in passes}) == 3


async def test_who_ran_dry_goes_before_those_who_came_later():
    async with working(0.0, max_batch=1) as (decoder, worker):
        [dry] = await ahead(worker, 1, 1)
        [dry_slots] = decoder.slots_of
        await held(decoder, worker)
        new = worker.open()
        await new.feed(frames(1))
        await dry.feed(frames(1))
        passes = await turns(decoder, [new, dry])
        assert [slots == dry_slots for slots, _ in passes] == [True, False]


async def test_a_replay_alternates_with_streams_that_are_late():
    """The frames that a listener has do not advance the deadline, and do not keep it in the past either."""
    async with working(0.0, max_batch=1) as (decoder, worker):
        await held(decoder, worker)
        replay = worker.open(discard_frames=32)
        await replay.feed(frames(*range(8)))
        other = worker.open()
        for stream in (replay, other, replay, other):
            await stream.feed(frames(*range(8)))
        order = [slot for [slot], _ in await turns(decoder, [replay, other])]
        assert [slot == order[0] for slot in order] == [True, False, True, False, True]


async def test_a_replay_waits_for_streams_with_an_earlier_deadline():
    async with working(0.0, max_batch=1) as (decoder, worker):
        await held(decoder, worker)
        replay = worker.open(discard_frames=8, buffered_s=60.0)
        other = worker.open()
        for stream in (replay, other, other):
            await stream.feed(frames(*range(8)))
        order = [slot for [slot], _ in await turns(decoder, [other, replay])]
        assert order[0] == order[1] != order[2]


async def test_frames_after_a_replay_advance_the_deadline():
    async with working(100.0, max_batch=1) as (decoder, worker):
        await held(decoder, worker)
        replay = worker.open(discard_frames=8)
        await replay.feed(frames(*range(8)))
        await replay.feed(frames(*range(8)))
        await replay.feed(frames(*range(8)))
        other = worker.open()
        await other.feed(frames(*range(8)))
        order = [slot for [slot], _ in await turns(decoder, [other, replay])]
        assert [slot == order[0] for slot in order] in ([True, False, True, True], [True, True, False, True])
