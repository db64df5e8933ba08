"""The stages as they are, over devices that compute nothing: what is left is what the host does for a second of speech.

Servicers, schedulers, batchers and hand-over are the services' own; a pass takes the time that it is given. Frames are
all alike, audio is silence. Imports no torch.
"""

from __future__ import annotations

import asyncio
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

    def __init__(self, pass_s: float):
        self._pass_s, self._free_s = pass_s, 0.0

    def launch(self) -> Callable[[], None]:
        """Returns: waits until the pass is done."""
        self._free_s = max(self._free_s, time.perf_counter()) + self._pass_s
        return partial(self._wait, self._free_s)

    @staticmethod
    def _wait(done_s: float) -> None:
        time.sleep(max(0.0, done_s - time.perf_counter()))


class NullRunner:
    """A generator whose steps take `pass_s`, however many slots they have."""

    frames_ahead = 1

    def __init__(self, pass_s: float, codebooks: int):
        self._device = Device(pass_s)
        self._codes = [(7 * number) % 2048 + 1 for number in range(codebooks)]
        self._tokens: dict[int, int] = {}

    def begin(self, slot, prompt, sampling, table):
        self._tokens[slot] = len(prompt.tokens)

    def prefill(self, slots: Sequence[int]) -> list[int]:
        return list(slots)

    def prefilled_tokens(self, slot: int) -> int:
        return self._tokens[slot]

    def launch(self, slots: Sequence[int]) -> Callable[[], list[list[int]]]:
        wait, count = self._device.launch(), len(slots)

        def collect() -> list[list[int]]:
            wait()
            return [self._codes] * count

        return collect

    def release(self, slot: int) -> None:
        self._tokens.pop(slot, None)


class NullDecoder:
    """A codec whose passes take `pass_s`."""

    slots, max_chunk_frames, max_batch, overlaps = SLOTS, 8, MAX_BATCH, True

    def __init__(self, pass_s: float, samples_per_frame: int):
        self._device, self._samples_per_frame = Device(pass_s), samples_per_frame

    def reset(self, slot: int) -> None:
        pass

    def begin(self, batch: Sequence[tuple[int, np.ndarray]]) -> Callable[[], list[np.ndarray]]:
        wait, frames = self._device.launch(), [len(codes) for _, codes in batch]

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
    """A watermark whose passes take `pass_s`."""

    first_samples, lookahead_samples, opening_samples, eager_passes = LOOKAHEAD + 1, LOOKAHEAD, 0, 0

    def __init__(self, pass_s: float):
        self._pass_s = pass_s

    def open(self) -> NullEmbedStream:
        return NullEmbedStream()

    def advance(self, items: Sequence[tuple[NullEmbedStream, np.ndarray | None]]) -> list[np.ndarray]:
        time.sleep(self._pass_s)
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
async def open_tokenizer(bundle: Bundle, pass_s: float) -> AsyncIterator[Stage]:
    """pass_s: is not used."""
    add = tokenizer_pb2_grpc.add_TokenizerServiceServicer_to_server
    yield Stage("csm.tokenizer.v1.TokenizerService", lambda server: add(Tokenizer(), server))


@asynccontextmanager
async def open_backbone(bundle: Bundle, pass_s: float) -> AsyncIterator[Stage]:
    pool = BlockPool(SLOTS * blocks_for(512))
    scheduler = Scheduler(slots=SLOTS, queue_capacity=SLOTS, pool=pool)
    engine = Engine(NullRunner(pass_s, bundle.codebooks), scheduler)
    servicer = BackboneServicer(bundle, engine, max_frames=1125, device="none", dtype="none")
    engine.start()
    try:
        add = backbone_pb2_grpc.add_BackboneServiceServicer_to_server
        yield Stage("csm.backbone.v1.BackboneService", lambda server: add(servicer, server))
    finally:
        await engine.stop(0)


@asynccontextmanager
async def open_codec(bundle: Bundle, pass_s: float) -> AsyncIterator[Stage]:
    worker = DecodeWorker(NullDecoder(pass_s, bundle.samples_per_frame), frame_s=1 / bundle.frame_rate_hz)
    worker.start()
    try:
        servicer = CodecServicer(bundle, worker, SLOTS, HISTORY_FRAMES)
        add = codec_pb2_grpc.add_CodecServiceServicer_to_server
        yield Stage("csm.codec.v1.CodecService", lambda server: add(servicer, server))
    finally:
        await worker.close()


@asynccontextmanager
async def open_watermark(bundle: Bundle, pass_s: float) -> AsyncIterator[Stage]:
    settings = read(WatermarkSettings, environ={"CSM_WATERMARK_STREAMS": str(SLOTS)})
    embedder, marking, searching = NullEmbedder(pass_s), DeviceLoop("watermark-marking", threads=2), Pool("search", 1)
    policy = partial(select_batch, max_samples=PASS_SAMPLES)
    batcher = Batcher(embedder.advance, marking, MAX_BATCH, policy)
    keys = (Key("null", bytes(5)),)
    servicer = WatermarkServicer(settings, bundle, keys, embedder, None, batcher, searching)
    try:
        add = watermark_pb2_grpc.add_WatermarkServiceServicer_to_server
        yield Stage("csm.watermark.v1.WatermarkService", lambda server: add(servicer, server))
    finally:
        marking.close()
        searching.close()


OPEN = {"tokenizer": open_tokenizer, "backbone": open_backbone, "codec": open_codec, "watermark": open_watermark}


async def serve(name: str, settings, pass_s: float) -> None:
    """One stage, until the process is ended. pass_s: of its device, each pass."""
    telemetry.configure(name, metrics_listen="127.0.0.1:0")
    async with OPEN[name](load_bundle(BUNDLE), pass_s) as stage:
        await StageServer(stage, settings).start()
        await asyncio.Event().wait()
