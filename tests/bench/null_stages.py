"""The stages as they are, over devices that compute nothing: what is left is what the host does for a second of speech.

Servicers, schedulers, batchers and hand-over are the services' own; a pass takes the time that it is given. Frames are
all alike, audio is silence. Imports no torch.
"""

from __future__ import annotations

import asyncio
import fcntl
import gc
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial

import numpy as np
from csm.backbone.v1 import backbone_pb2_grpc
from csm.codec.v1 import codec_pb2_grpc
from csm.tokenizer.v1 import tokenizer_pb2, tokenizer_pb2_grpc
from csm.watermark.v1 import watermark_pb2_grpc

from models.bundle import Bundle, load_bundle
from services.backbone.blocks import BlockPool, blocks_for
from services.backbone.engine import Engine
from services.backbone.runner_api import Runner
from services.backbone.scheduler import Scheduler
from services.backbone.servicer import BackboneServicer
from services.codec.servicer import CodecServicer
from services.codec.worker import DecodeWorker
from services.engine.batcher import Batcher
from services.engine.loop import DeviceLoop
from services.runtime import telemetry
from services.runtime.identity import identity
from services.runtime.pool import Pool
from services.runtime.server import Stage, StageServer
from services.runtime.settings import read
from services.watermark.batch_policy import select_batch
from services.watermark.config import WatermarkSettings
from services.watermark.key_ring import Key
from services.watermark.servicer import WatermarkServicer
from services.watermark.stream import Checkpoint

BUNDLE = "csm-1b"  # its shapes; no weights are read
SLOTS = 1536
HISTORY_FRAMES = 252
LOOKAHEAD = 9_000  # samples, the public watermark's
PASS_SAMPLES = 983_040  # of one pass of the watermark on a GPU
MAX_BATCH = 256


class Device:
    """Passes one after another, each of `pass_s`."""

    streams = 1  # that each stream stands for

    def __init__(self, pass_s: float, generator: str = "none"):
        """generator: `tables`, kept up as on a GPU, or a GPU's own with random weights, `cuda` (null_graph.py)."""
        self._pass_s, self._free_s, self.generator = pass_s, 0.0, generator

    def launch(self, count: int, frames: int) -> Callable[[], None]:
        """count: streams. frames: of each. Returns: waits until the pass is done."""
        self._free_s = max(self._free_s, time.perf_counter()) + self._pass_s
        return partial(self._wait, self._free_s)

    @staticmethod
    def _wait(done_s: float) -> None:
        time.sleep(max(0.0, done_s - time.perf_counter()))


class Card:
    """As Device, of one GPU that the processes share in turns of `_TURN_S`: of the process that holds the lock on its file.

    A pass takes what it takes on an H200, by the tables of docs/performance.md and NOTES.md.
    """

    generator = "none"

    def __init__(self, path: str, stage: str, streams: int, share: float = 1.0):
        """streams: that each stream stands for. share: of the card's speed that there is: passes disturb each other."""
        self.streams, self._share = streams, share
        self._file, self._cost_s = open(path, "wb"), _COSTS_S[stage]

    def launch(self, count: int, frames: int) -> Callable[[], None]:
        return partial(self._run, self._cost_s(count * self.streams, frames) / self._share)

    def _run(self, left_s: float) -> None:
        while left_s > 0:
            fcntl.flock(self._file, fcntl.LOCK_EX)
            began_s = time.perf_counter()
            time.sleep(min(_TURN_S, left_s))
            left_s -= time.perf_counter() - began_s
            fcntl.flock(self._file, fcntl.LOCK_UN)


_TURN_S = 0.002
_STEPS_MS = (0, 1, 256, 512, 1024), (3.4, 3.5, 9.2, 13.5, 23.7)


def _step_s(count: int, frames: int) -> float:
    """Beyond 1,024 streams along the line between 512 and 1,024."""
    beyond_ms = max(0, count - 1024) * (23.7 - 13.5) / 512
    return (float(np.interp(count, *_STEPS_MS)) + beyond_ms) / 1000


_COSTS_S: dict[str, Callable[[int, int], float]] = {
    "backbone": _step_s,
    "codec": lambda count, frames: (1.0 + count * (0.0054 + 0.0044 * frames)) / 1000,  # TF32
    "watermark": lambda count, frames: (1.0 + count * (0.0102 + 0.0097 * frames)) / 1000,  # fp16
}


class NullRunner:
    """A generator of padded steps. sizes: that they are padded to, ascending; none: they are not."""

    frames_ahead = 1

    def __init__(self, device: Device | Card, codebooks: int, sizes: Sequence[int] = ()):
        self._device, self._sizes = device, sizes
        self._codes = np.array([[(7 * number) % 2047 + 1 for number in range(codebooks)]] * SLOTS)
        self._tokens: dict[int, int] = {}

    def begin(self, slot, prompt, sampling, table):
        self._tokens[slot] = len(prompt.tokens)

    def prefill(self, slots: Sequence[int]) -> list[int]:
        return list(slots)

    def prefilled_tokens(self, slot: int) -> int:
        return self._tokens[slot]

    def launch(self, slots: Sequence[int]) -> Callable[[], np.ndarray]:
        count, streams = len(slots), self._device.streams
        size = next((size for size in self._sizes if size >= count * streams), count * streams)
        wait = self._device.launch(size // streams, 1)

        def collect() -> np.ndarray:
            wait()
            return self._codes[:count]

        return collect

    def release(self, slot: int) -> None:
        self._tokens.pop(slot, None)


class NullDecoder:
    """A codec."""

    slots, max_chunk_frames, overlaps = SLOTS, 8, True

    def __init__(self, device: Device | Card, samples_per_frame: int):
        self._device, self._samples_per_frame = device, samples_per_frame
        self.max_batch = MAX_BATCH // device.streams

    def reset(self, slot: int) -> None:
        pass

    def begin(self, batch: Sequence[tuple[int, np.ndarray]]) -> Callable[[], list[np.ndarray]]:
        frames = [len(codes) for _, codes in batch]
        wait = self._device.launch(len(batch), frames[0])

        def collect() -> list[np.ndarray]:
            wait()
            return [np.zeros(count * self._samples_per_frame, np.float32) for count in frames]

        return collect


class NullEmbedStream:
    """Gives silence, `LOOKAHEAD` samples after it was pushed."""

    checkpoint = Checkpoint(0, 0, 0, 0.0)

    def __init__(self) -> None:
        self._pending = 0

    def advance(self, samples: np.ndarray | None) -> np.ndarray:
        """The samples that are ready now; None is the end."""
        self._pending += LOOKAHEAD if samples is None else len(samples)
        ready = max(0, self._pending - LOOKAHEAD)
        self._pending = min(self._pending, LOOKAHEAD)
        return np.zeros(ready, np.float32)

    def close(self) -> None:
        pass


class NullEmbedder:
    """A watermark."""

    first_samples, lookahead_samples, opening_samples, eager_passes = LOOKAHEAD + 1, LOOKAHEAD, 0, 0

    def __init__(self, device: Device | Card):
        self._device = device

    def open(self) -> NullEmbedStream:
        return NullEmbedStream()

    def advance(self, items: Sequence[tuple[NullEmbedStream, np.ndarray | None]]) -> list[np.ndarray]:
        samples = sum(len(samples) for _, samples in items if samples is not None)
        self._device.launch(1, 0)() if not samples else self._device.launch(len(items), samples // 1920 // len(items))()
        return [stream.advance(samples) for stream, samples in items]


class Tokenizer(tokenizer_pb2_grpc.TokenizerServiceServicer):
    """A token a letter."""

    async def Tokenize(self, request, context):
        return tokenizer_pb2.TokenizeResponse(
            segments=[tokenizer_pb2.TokenizedSegment(ids=[1, *s.text.encode(), 2]) for s in request.segments]
        )

    async def GetModelInfo(self, request, context):
        return tokenizer_pb2.GetModelInfoResponse(bundle=identity(load_bundle(BUNDLE)))


@asynccontextmanager
async def open_tokenizer(bundle: Bundle, device: Device | Card, sizes: Sequence[int]) -> AsyncIterator[Stage]:
    """device, sizes: are not used."""
    add = tokenizer_pb2_grpc.add_TokenizerServiceServicer_to_server
    yield Stage("csm.tokenizer.v1.TokenizerService", lambda server: add(Tokenizer(), server))


@asynccontextmanager
async def open_backbone(bundle: Bundle, device: Device | Card, sizes: Sequence[int]) -> AsyncIterator[Stage]:
    pool = BlockPool(SLOTS * blocks_for(512))
    scheduler = Scheduler(slots=SLOTS, queue_capacity=SLOTS, pool=pool)
    runner: Runner = NullRunner(device, bundle.codebooks, sizes)
    if device.generator != "none":
        import null_graph  # it needs torch

        runner = null_graph.runner(bundle, SLOTS, pool.blocks, None if device.generator == "cuda" else device.launch)
    engine = Engine(runner, scheduler)
    servicer = BackboneServicer(bundle, engine, max_frames=1125, device="none", dtype="none")
    engine.start()
    try:
        add = backbone_pb2_grpc.add_BackboneServiceServicer_to_server
        yield Stage("csm.backbone.v1.BackboneService", lambda server: add(servicer, server))
    finally:
        await engine.stop(0)


@asynccontextmanager
async def open_codec(bundle: Bundle, device: Device | Card, sizes: Sequence[int]) -> AsyncIterator[Stage]:
    worker = DecodeWorker(NullDecoder(device, bundle.samples_per_frame), frame_s=1 / bundle.frame_rate_hz)
    worker.start()
    try:
        servicer = CodecServicer(bundle, worker, SLOTS, HISTORY_FRAMES)
        add = codec_pb2_grpc.add_CodecServiceServicer_to_server
        yield Stage("csm.codec.v1.CodecService", lambda server: add(servicer, server))
    finally:
        await worker.close()


@asynccontextmanager
async def open_watermark(bundle: Bundle, device: Device | Card, sizes: Sequence[int]) -> AsyncIterator[Stage]:
    settings = read(WatermarkSettings, environ={"CSM_WATERMARK_STREAMS": str(SLOTS)})
    embedder, marking, searching = NullEmbedder(device), DeviceLoop("watermark-marking", threads=2), Pool("search", 1)
    policy = partial(select_batch, max_samples=PASS_SAMPLES // device.streams)
    batcher = Batcher(embedder.advance, marking, MAX_BATCH // device.streams, policy)
    keys = (Key("null", bytes(5)),)
    servicer = WatermarkServicer(settings, bundle, keys, embedder, None, batcher, searching)
    try:
        add = watermark_pb2_grpc.add_WatermarkServiceServicer_to_server
        yield Stage("csm.watermark.v1.WatermarkService", lambda server: add(servicer, server))
    finally:
        marking.close()
        searching.close()


OPEN = {"tokenizer": open_tokenizer, "backbone": open_backbone, "codec": open_codec, "watermark": open_watermark}


async def serve(name: str, settings, device: Device | Card, sizes: Sequence[int]) -> None:
    """One stage, until the process is ended. sizes: of a generator's steps."""
    telemetry.configure(name, metrics_listen="127.0.0.1:0")
    async with OPEN[name](load_bundle(BUNDLE), device, sizes) as stage:
        gc.collect()
        gc.freeze()  # as services/runtime/server.py does
        await StageServer(stage, settings).start()
        await asyncio.Event().wait()
