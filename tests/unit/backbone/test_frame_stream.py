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
    waits = []
    wait = stream._wait
    monkeypatch.setattr(stream, "_wait", lambda frames: waits.append(frames) or wait(frames))
    reading = asyncio.ensure_future(stream.read(4))
    for number in range(4):
        await turns()
        assert not reading.done()
        stream.on_event(StreamEvent(stream, frame=[number]))
    assert await reading == [[0], [1], [2], [3]]
    assert waits == [4] and engine.read == [4]


async def test_the_end_wakes_a_reader_that_waits_for_more():
    stream = stream_of(Engine())
    reading = asyncio.ensure_future(stream.read(24))
    await turns()
    stream.on_event(StreamEvent(stream, frame=[7], finish=FinishReason.MAX_LENGTH))
    assert await reading == [[7]]
    assert await stream.read(24) == []


async def test_a_prompt_that_is_read_wakes_its_reader():
    stream = stream_of(Engine())
    waiting = asyncio.ensure_future(stream.prefilled())
    await turns()
    stream.on_event(StreamEvent(stream, is_prefilled=True))
    await asyncio.wait_for(waiting, 5)
