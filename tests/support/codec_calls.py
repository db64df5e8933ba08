"""The codec service on a loopback port, what it is asked, and what its answers hold."""

import asyncio
from contextlib import asynccontextmanager

import grpc
import numpy as np
import torch
from csm.codec.v1 import codec_pb2, codec_pb2_grpc
from csm.common.v1 import common_pb2
from grpc_health.v1 import health_pb2_grpc

from services.codec.__main__ import open_stage
from services.codec.config import CodecSettings
from services.runtime.grpc_options import FLOW_CONTROL
from services.runtime.server import StageServer
from services.runtime.settings import read
from support import tiny_mimi

SLOTS, SPF = 3, 1920


class Served:
    def __init__(self, channel):
        self.codec = codec_pb2_grpc.CodecServiceStub(channel)
        self.health = health_pb2_grpc.HealthStub(channel)

    async def info(self):
        return await self.codec.GetModelInfo(codec_pb2.GetModelInfoRequest(), timeout=10)

    async def until_active(self, count):
        """Ask until so many slots are taken; the test's own timeout is the limit."""
        async with asyncio.timeout(20):
            while (await self.info()).slots_active != count:
                await asyncio.sleep(0.005)

    async def begin(self, timeout=60):
        """A call that has its slot."""
        call = self.codec.Decode(timeout=timeout)
        await call.write(START)
        assert (await call.read()).HasField("started")
        return call


@asynccontextmanager
async def serve(bundle_folder, **overrides):
    settings = read(CodecSettings, {}, listen="127.0.0.1:0", model=str(bundle_folder), slots=SLOTS, **overrides)
    async with open_stage(settings) as stage:
        server = StageServer(stage, settings)
        address = await server.start()
        try:
            # No retries: a refusal is seen as one.
            options = [("grpc.enable_retries", 0), *FLOW_CONTROL]
            async with grpc.aio.insecure_channel(address, options) as channel:
                yield Served(channel)
        finally:
            await server.stop(0)


START = codec_pb2.DecodeRequest(start=codec_pb2.DecodeStart())


def frames_request(codes):
    frames = [common_pb2.Frame(codes=map(int, frame)) for frame in codes]
    return codec_pb2.DecodeRequest(frames=codec_pb2.DecodeFrames(frames=frames))


def random_codes(seed, frames):
    return np.random.default_rng(seed).integers(0, tiny_mimi.BINS, (frames, tiny_mimi.CODEBOOKS))


def one_shot(mimi, codes):
    with torch.inference_mode():
        return mimi.decode(torch.from_numpy(codes.T.copy())[None])[0, 0].numpy()


async def requests(codes, sizes):
    yield START
    start = 0
    for size in sizes:
        yield frames_request(codes[start : start + size])
        start += size
    assert start == len(codes)


async def listen(call):
    """(samples of each audio message, finished) of a whole stream."""
    started, *middle, last = [response async for response in call]
    assert started.started.samples_per_frame == SPF
    return [np.frombuffer(response.audio.data, "<f4") for response in middle], last.finished


def samples(data):
    return np.frombuffer(data, "<f4")
