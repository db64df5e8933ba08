"""`python -m services.codec`: frames of codes to audio."""

from __future__ import annotations

from services.runtime.extras import require_extra

require_extra("codec")

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import torch
from csm.codec.v1 import codec_pb2_grpc

from models.bundle import load_bundle
from models.device import usable_device
from models.files import ModelError
from models.mimi import load_mimi
from services.codec.config import CodecSettings
from services.codec.decoder import SlotDecoder
from services.codec.servicer import CodecServicer
from services.codec.worker import DecodeWorker
from services.runtime.server import Stage, main


@asynccontextmanager
async def open_stage(settings: CodecSettings) -> AsyncIterator[Stage]:
    """The servicer with its worker. Raises: StartError, ModelError."""
    torch.set_num_threads(settings.threads)
    bundle = load_bundle(settings.model)
    device = usable_device("CSM_CODEC_DEVICE", settings.device)
    mimi = await asyncio.to_thread(load_mimi, bundle, device)
    decoder = SlotDecoder(
        mimi,
        slots=settings.slots,
        max_chunk_frames=settings.max_chunk_frames,
        precision=settings.precision,
    )
    await asyncio.to_thread(decoder.warm_up)
    worker = DecodeWorker(
        decoder,
        frame_s=1 / bundle.frame_rate_hz,
        max_backlog_frames=settings.max_backlog_frames,
        stall_s=settings.stall_s,
    )
    worker.start()
    try:
        servicer = CodecServicer(bundle, worker, settings.slots, decoder.history_frames)
        yield Stage(
            service="csm.codec.v1.CodecService",
            register=lambda server: codec_pb2_grpc.add_CodecServiceServicer_to_server(servicer, server),
            is_live=worker.is_live,
            build={"bundle": bundle.id, "precision": settings.precision, "device": device.type},
        )
    finally:
        await worker.close()


if __name__ == "__main__":
    main("codec", CodecSettings, open_stage, start_errors=(ModelError,))
