"""An engine on a runner that needs no model: frames are (prompt's number, frame's number)."""

from __future__ import annotations

import asyncio
import threading

import numpy as np

from services.backbone.blocks import BlockPool
from services.backbone.engine import Engine
from services.backbone.frame_rows import codes_of
from services.backbone.request import Request, Sampling
from services.backbone.scheduler import Scheduler


class FakeRunner:
    """Steps only when a test has allowed it to, unless it runs free."""

    frames_ahead = 0

    def __init__(self, free=True, pieces=1):
        self.free, self.pieces = free, pieces
        self.permits = threading.Semaphore(0)
        self.held: dict[int, list[int]] = {}  # slot → [number, next frame, pieces left]
        self.log: list[tuple] = []
        self.in_step = threading.Event()  # the first step has begun
        self.break_next = threading.Event()
        self.ends: dict[int, int] = {}  # number → frame that ends its speech

    def begin(self, slot, prompt, sampling, table):
        assert slot not in self.held
        self.held[slot] = [prompt, 0, self.pieces]
        self.log.append(("begin", prompt))

    def prefill(self, slots):
        slot = slots[0]
        self.held[slot][2] -= 1
        self.log.append(("prefill", self.held[slot][0]))
        return [slot] if self.held[slot][2] <= 0 else []

    def prefilled_tokens(self, slot):
        return 0

    def launch(self, slots):
        frames = np.array(self.step(slots))
        return lambda: frames

    def step(self, slots):
        self.in_step.set()
        if not self.free:
            self.permits.acquire()
        if self.break_next.is_set():
            raise RuntimeError("device lost")
        self.log.append(("step", [self.held[slot][0] for slot in slots]))
        frames = []
        for slot in slots:
            number, frame, _ = self.held[slot]
            frames.append([0, 0] if self.ends.get(number) == frame else [number, frame + 1])
            self.held[slot][1] += 1
        return frames

    def release(self, slot):
        self.held.pop(slot, None)

    def allow(self, steps):
        self.permits.release(steps)


class Bench:
    """An engine on a fake runner, stopped at the end of the test."""

    def __init__(self, runner, slots=2, queue=2, **options):
        self.runner = runner
        pool = options.pop("pool", None) or BlockPool(256)
        self.engine = Engine(runner, Scheduler(slots=slots, queue_capacity=queue, pool=pool, **options))

    async def __aenter__(self):
        self.engine.start()
        return self

    async def __aexit__(self, *_):
        self.runner.free = True
        self.runner.allow(1)
        await self.engine.stop(0)
        assert not self.engine._thread.is_alive()
        assert self.runner.held == {} or self.runner.break_next.is_set()

    def submit(self, number, max_frames=5, deadline_s=None, generated=0):
        return self.engine.submit(Request(number, Sampling(), max_frames, generated, deadline_s))


def lists(rows):
    """The codes of what a stream's reader got."""
    return codes_of(rows).tolist() if rows else []


async def until(condition):
    """Let the loop run until `condition` holds; the test's timeout is the limit."""
    while not condition():
        await asyncio.sleep(0)
