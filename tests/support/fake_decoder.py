"""A decoder for tests of the worker, and what to do with its streams."""

import asyncio
import threading

import numpy as np


class FakeDecoder:
    """A decoder whose audio of a frame is two samples: the stream's running sum and the frame's code.

    `gate` holds passes back when it is cleared, their beginning or (overlapping) their end; `passes` remembers (streams, frames) of each,
    `slots_of` the slots.
    """

    max_chunk_frames = 8

    def __init__(self, overlaps=False, slots=3, max_batch=3):
        self.overlaps, self.slots, self.max_batch = overlaps, slots, max_batch
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


def frames(*codes):
    return np.array(codes).reshape(-1, 1)


async def hear(stream):
    return [audio async for audio in stream]


async def held(decoder, worker):
    """A stream of which one frame is in a pass that does not end until the gate opens."""
    decoder.gate.clear()
    decoder.entered.clear()
    stream = worker.open()
    await stream.feed(frames(0))
    assert await asyncio.to_thread(decoder.entered.wait, 30)
    return stream
