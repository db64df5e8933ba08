"""`python -m services.tokenizer`: text to token ids, context audio to Mimi codes."""

from __future__ import annotations

from services.runtime.extras import require_extra

require_extra("tokenizer")

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import torch
from csm.tokenizer.v1 import tokenizer_pb2_grpc

from models.bundle import load_bundle
from models.device import usable_device
from models.files import ModelError
from models.mimi import load_mimi
from services.engine.batcher import Batcher
from services.engine.loop import DeviceLoop
from services.runtime.server import Stage, main
from services.tokenizer.batch_policy import batch_policy
from services.tokenizer.config import TokenizerSettings
from services.tokenizer.encoder import ClipEncoder
from services.tokenizer.servicer import TokenizerServicer
from services.tokenizer.text import load_text_tokenizer


@asynccontextmanager
async def open_stage(settings: TokenizerSettings) -> AsyncIterator[Stage]:
    """The servicer with its models. Raises: StartError, ModelError."""
    torch.set_num_threads(settings.threads)
    bundle = load_bundle(settings.model)
    device = usable_device("CSM_TOKENIZER_DEVICE", settings.device)
    text = await asyncio.to_thread(load_text_tokenizer, bundle, settings.max_text_chars)
    encoder = ClipEncoder(await asyncio.to_thread(load_mimi, bundle, device))
    await asyncio.to_thread(encoder.warm_up)
    loop: DeviceLoop = DeviceLoop("tokenizer-encoder", threads=settings.encoders, stall_s=settings.stall_s)
    max_batch = settings.batch or (1 if device.type == "cpu" else 32)
    max_samples = int(settings.batch_audio_s * encoder.sample_rate_hz)
    batcher = Batcher(encoder.encode_all, loop, max_batch, partial(batch_policy, max_samples=max_samples))
    servicer = TokenizerServicer(settings, bundle, text, batcher)
    try:
        yield Stage(
            service="csm.tokenizer.v1.TokenizerService",
            register=lambda server: tokenizer_pb2_grpc.add_TokenizerServiceServicer_to_server(servicer, server),
            is_live=loop.is_live,
            build={"bundle": bundle.id, "precision": "fp32", "device": device.type},
        )
    finally:
        loop.close()


if __name__ == "__main__":
    main("tokenizer", TokenizerSettings, open_stage, start_errors=(ModelError,))
