"""A served backbone whose runner makes a frame when the test allows it; engine and servicer are real."""

from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager

import grpc
import numpy as np
from csm.backbone.v1 import backbone_pb2, backbone_pb2_grpc
from csm.common.v1 import common_pb2

from models.bundle import load_bundle
from services.backbone.blocks import BlockPool
from services.backbone.engine import Engine
from services.backbone.scheduler import Scheduler
from services.backbone.servicer import BackboneServicer
from services.runtime.server import Stage, StageServer
from services.runtime.settings import ServerSettings, read


class GatedRunner:
    """Frame n of every slot is all n + 1; a step waits for a permit unless `open` is set."""

    frames_ahead = 0

    def __init__(self, codebooks):
        self.codebooks = codebooks
        self.open = threading.Event()
        self.permits = threading.Semaphore(0)
        self.held: dict[int, int] = {}
        self.steps = 0
        self.broken = False
        self.ends_at: int | None = None

    def begin(self, slot, prompt, sampling, table):
        self.held[slot] = 0

    def prefill(self, slots):
        return list(slots)

    def prefilled_tokens(self, slot):
        return 0

    def launch(self, slots):
        while not self.open.is_set() and not self.permits.acquire(timeout=0.01):
            pass
        if self.broken:
            raise RuntimeError("device lost")
        self.steps += 1
        frames = []
        for slot in slots:
            frames.append([0 if self.held[slot] == self.ends_at else self.held[slot] + 1] * self.codebooks)
            self.held[slot] += 1
        return lambda: np.array(frames)

    def release(self, slot):
        self.held.pop(slot, None)

    def allow(self, steps):
        self.permits.release(steps)


class Bench:
    """A served backbone: `stub` to call it, `runner` to give it orders, `engine` to look inside."""

    def __init__(self, address, server, engine, runner, channel):
        self.address, self.server, self.engine, self.runner, self.channel = address, server, engine, runner, channel
        self.stub = backbone_pb2_grpc.BackboneServiceStub(channel)

    async def left(self):
        """Until the server knows that the caller is gone; the engine may still be in that caller's last step."""
        while self.engine.load().slots_active:
            await asyncio.sleep(0.005)

    async def idle(self):
        """Until no slot is in use: the test's own limit ends a wait in vain."""
        while self.engine.load().slots_active or self.engine.load().queue_depth or self.runner.held:
            await asyncio.sleep(0.005)


@asynccontextmanager
async def bench(*, slots=1, queue=0, **options):
    bundle = load_bundle("embedded")
    runner = GatedRunner(bundle.codebooks)
    engine = Engine(runner, Scheduler(slots=slots, queue_capacity=queue, pool=BlockPool(256), **options))
    servicer = BackboneServicer(bundle, engine, max_frames=500, device="cpu", dtype="float32")
    stage = Stage(
        "csm.backbone.v1.BackboneService",
        lambda server: backbone_pb2_grpc.add_BackboneServiceServicer_to_server(servicer, server),
        is_live=lambda: engine.is_live(30.0),
    )
    server = StageServer(stage, read(ServerSettings, environ={}, listen="127.0.0.1:0"))
    engine.start()
    address = await server.start()
    # without the retries of services.runtime.channels: these tests want to see the first answer
    channel = grpc.aio.insecure_channel(address, options=[("grpc.enable_retries", 0)])
    try:
        yield Bench(address, server, engine, runner, channel)
    finally:
        await channel.close()
        await server.stop(0)
        runner.open.set()
        await engine.stop(0)


def request(max_frames=400, ramp=(1,)):
    return backbone_pb2.GenerateRequest(
        prompt=[backbone_pb2.PromptPart(text=backbone_pb2.TextPart(ids=[1, 2, 3]))],
        sampling=common_pb2.SamplingOptions(seed=1),
        max_frames=max_frames,
        chunk_policy=backbone_pb2.ChunkPolicy(ramp_frames=ramp),
    )
