"""`python -m services.watermark`: audio in, marked audio out; and whether a clip is marked."""

from __future__ import annotations

from services.runtime.extras import require_extra

require_extra("watermark")

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import torch
from csm.watermark.v1 import watermark_pb2_grpc

from models.bundle import load_bundle
from models.device import usable_device
from models.files import ModelError
from services.engine.batcher import Batcher
from services.engine.loop import DeviceLoop
from services.runtime.pool import Pool
from services.runtime.server import Stage, main
from services.watermark.batch_policy import select_batch
from services.watermark.config import WatermarkSettings, check_opening, deployment_keys
from services.watermark.detector import OFFSETS, Detector
from services.watermark.embedder import Embedder
from services.watermark.level import FixedLevel, RunningLevel
from services.watermark.servicer import WatermarkServicer
from services.watermark.weights import load_nets


@asynccontextmanager
async def open_stage(settings: WatermarkSettings) -> AsyncIterator[Stage]:
    """The servicer with its nets and threads. Raises: StartError, ModelError."""
    torch.set_num_threads(settings.threads)
    bundle = load_bundle(settings.model)
    device = usable_device("CSM_WATERMARK_DEVICE", settings.device)
    nets = await asyncio.to_thread(load_nets, bundle.watermark.resolve(), device)
    keys = deployment_keys(settings, bundle, nets.hparams.key_bytes)
    options = bundle.watermark.options
    sdr_db = settings.sdr_db if settings.sdr_db is not None else options.get("message_sdr_db")
    embedder = Embedder(
        nets,
        keys[0].secret,
        sample_rate_hz=bundle.sample_rate_hz,
        message_sdr_db=sdr_db,
        level=FixedLevel() if settings.level == "fixed" else RunningLevel(),
        slots=settings.streams,
        precision=settings.precision,
        opening_s=settings.opening_ms / 1000,
    )
    check_opening(settings, embedder.lookahead_samples, bundle)
    await asyncio.to_thread(embedder.warm_up)
    detector = Detector(nets, max_seconds=settings.max_detect_s, offsets=options.get("search_offsets", OFFSETS))
    is_cpu = device.type == "cpu"
    marking: DeviceLoop = DeviceLoop(
        "watermark-marking", threads=settings.workers or (1 if is_cpu else 2), stall_s=settings.stall_s
    )
    searching = Pool("watermark-searching", settings.detections)
    batcher = Batcher(
        embedder.advance,
        marking,
        settings.batch or (1 if is_cpu else 256),
        partial(select_batch, max_samples=embedder.pass_samples),
    )
    servicer = WatermarkServicer(settings, bundle, keys, embedder, detector, batcher, searching)
    try:
        yield Stage(
            service="csm.watermark.v1.WatermarkService",
            register=lambda server: watermark_pb2_grpc.add_WatermarkServiceServicer_to_server(servicer, server),
            is_live=marking.is_live,
            build={"bundle": bundle.id, "precision": embedder.precision, "device": device.type},
        )
    finally:
        marking.close()
        searching.close()


if __name__ == "__main__":
    main("watermark", WatermarkSettings, open_stage, start_errors=(ModelError,))
