"""A request's output: its reader runs when all that it waits for is there, not once a frame."""

import asyncio
from types import SimpleNamespace

from services.backbone.frame_stream import FrameStream, StreamEvent
from services.backbone.request import FinishReason


class Engine:
    def __init__(self):
        self.read = []

    def on_read(self, seq, frames):
        self.read.append(frames)

    def cancel(self, seq):
        pass


def stream_of(engine):
    stream = FrameStream(engine)
    stream.seq = SimpleNamespace()
    return stream


async def turns(count=3):
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_reader_wakes_once_a_chunk(monkeypatch):
    stream = stream_of(engine := Engine())
    waits, told = [], []
    wait = stream._wait
    monkeypatch.setattr(stream, "_wait", lambda frames: waits.append(frames) or wait(frames))
    reading = asyncio.ensure_future(stream.read(4))
    for number in range(4):
        await turns()
        assert not reading.done()
        if stream.add([number]):
            told.append(number)
            stream.on_event(StreamEvent(stream))
    assert told == [3]  # an event for the last one alone
    assert await reading == [[0], [1], [2], [3]]
    assert waits == [4] and engine.read == [4]


async def test_the_end_wakes_a_reader_that_waits_for_more():
    stream = stream_of(Engine())
    reading = asyncio.ensure_future(stream.read(24))
    await turns()
    assert not stream.add([7])
    stream.on_event(StreamEvent(stream, finish=FinishReason.MAX_LENGTH))
    assert await reading == [[7]]
    assert await stream.read(24) == []


async def test_a_prompt_that_is_read_wakes_its_reader():
    stream = stream_of(Engine())
    waiting = asyncio.ensure_future(stream.prefilled())
    await turns()
    stream.on_event(StreamEvent(stream, is_prefilled=True))
    await asyncio.wait_for(waiting, 5)


async def test_frames_that_nobody_waits_for_are_no_event():
    stream = stream_of(Engine())
    assert not any(stream.add([number]) for number in range(30))
    assert stream.ready_frames == 30
    assert await stream.read(30) == [[number] for number in range(30)]


async def test_a_frame_that_comes_before_the_reader_has_said_what_it_wants_is_seen(monkeypatch):
    stream = stream_of(Engine())
    loop = asyncio.get_running_loop()
    create_future = loop.create_future

    def late():
        assert not stream.add([1])  # the engine's thread, between the reader's look and its wish
        return create_future()

    monkeypatch.setattr(loop, "create_future", late)
    assert await stream.read(1) == [[1]]


async def test_a_reader_that_was_cancelled_leaves_no_wish():
    stream = stream_of(Engine())
    reading = asyncio.ensure_future(stream.read(2))
    await turns()
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    assert not stream.add([0]) and not stream.add([1])
    assert await stream.read(2) == [[0], [1]]


async def test_frames_from_another_thread_reach_a_reader_that_never_polls():
    stream, loop, count = stream_of(Engine()), asyncio.get_running_loop(), 20_000

    def make():
        for number in range(count):
            if stream.add([number]):
                loop.call_soon_threadsafe(stream.on_event, StreamEvent(stream))

    making = asyncio.ensure_future(asyncio.to_thread(make))
    async with asyncio.timeout(60):
        read = [frame for size in (1, 3, 96) for _ in range(200) for frame in await stream.read(size)]
    await making
    assert read == [[number] for number in range(count)]
