"""`python -m services.backbone`: the backbone server, prompts to frames of codes."""

from __future__ import annotations

from services.runtime.extras import require_extra

require_extra("backbone")

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import torch
from csm.backbone.v1 import backbone_pb2_grpc

from models.bundle import Bundle, load_bundle
from models.device import usable_device
from models.files import ModelError
from services.backbone.blocks import BlockPool, blocks_for
from services.backbone.config import BackboneSettings
from services.backbone.eager_runner import EagerRunner
from services.backbone.engine import Engine
from services.backbone.graph_runner import GraphRunner, kernel_plan_for
from services.backbone.kernels import can_defer_norms, can_overlap, persistent
from services.backbone.newcomers import NewcomersFirst
from services.backbone.scheduler import Scheduler
from services.backbone.servicer import BackboneServicer
from services.backbone.weights import load_model
from services.runtime.server import Stage, main
from services.runtime.settings import StartError

log = logging.getLogger(__name__)
# Of the graph runner: beyond it a step of all takes twice as long as one of a quarter of them (docs/performance.md).
_FLAT_SLOTS = 384
_PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16"}


@asynccontextmanager
async def open_stage(settings: BackboneSettings) -> AsyncIterator[Stage]:
    """The servicer with its engine. Raises: StartError, ModelError."""
    torch.set_num_threads(settings.threads)
    bundle = load_bundle(settings.model)
    runner = await asyncio.to_thread(_load, settings, bundle)
    if not bundle.trained:
        log.warning("bundle %s is untrained: it makes noise", bundle.id)
    scheduler = Scheduler(
        slots=settings.slots,
        queue_capacity=settings.queue,
        pool=BlockPool(runner.blocks, prefix_cache=settings.prefix_cache),
        buffer_frames=settings.buffer_frames,
        stall_limit_s=settings.reader_stall_s,
        newcomers=NewcomersFirst(
            1 / bundle.frame_rate_hz,
            head_start_s=settings.head_start_ms / 1000,
            flat_slots=settings.slots if isinstance(runner, EagerRunner) else _FLAT_SLOTS,
        ),
    )
    engine = Engine(runner, scheduler)
    servicer = BackboneServicer(
        bundle,
        engine,
        max_frames=settings.max_frames,
        device=runner.device.type,
        dtype=str(runner.dtype).removeprefix("torch."),
        trace_steps=settings.trace_steps,
    )
    engine.start()
    try:
        yield Stage(
            service="csm.backbone.v1.BackboneService",
            register=lambda server: backbone_pb2_grpc.add_BackboneServiceServicer_to_server(servicer, server),
            is_live=lambda: engine.is_live(settings.stall_s),
            build={"bundle": bundle.id, "precision": _PRECISIONS[runner.dtype], "device": runner.device.type},
        )
    finally:
        await engine.stop(0)


def _load(settings: BackboneSettings, bundle: Bundle) -> EagerRunner | GraphRunner:
    """The runner, warmed up. Raises: StartError."""
    device = usable_device("CSM_BACKBONE_DEVICE", settings.device)
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}.get(
        settings.dtype, torch.float32 if device.type == "cpu" else torch.bfloat16
    )
    min_blocks = blocks_for(bundle.generator.backbone.max_seq_len)
    if settings.blocks and settings.blocks < min_blocks:
        raise StartError(f"CSM_BACKBONE_BLOCKS={settings.blocks}: the longest request takes {min_blocks}")
    model = load_model(bundle.generator, device, dtype)
    slots, blocks = settings.slots, settings.blocks or None
    runner: EagerRunner | GraphRunner
    if settings.runner == "graph" or (settings.runner == "auto" and device.type == "cuda"):
        prefill = settings.max_prefill_tokens or 512
        persists = _uses_persistent_depth(settings, bundle, dtype, device)
        can = {"overlap": can_overlap(device), "defers": can_defer_norms(device)}
        plan = partial(kernel_plan_for, persistent_depth=persists, **can)
        runner = GraphRunner(model, slots=slots, blocks=blocks, max_prefill_tokens=prefill, kernel_plan=plan)
    else:
        prefill, batch = settings.max_prefill_tokens or 64, settings.eager_batch
        runner = EagerRunner(model, slots=slots, blocks=blocks, batch_size=batch, max_prefill_tokens=prefill)
    runner.warm_up()
    return runner


def _uses_persistent_depth(
    settings: BackboneSettings, bundle: Bundle, dtype: torch.dtype, device: torch.device
) -> bool:
    """Raises: StartError."""
    if settings.persistent_depth == "off":
        return False
    is_supported = persistent.supports(bundle.generator, dtype, device)
    if settings.persistent_depth == "on" and not is_supported:
        raise StartError(
            "CSM_BACKBONE_PERSISTENT_DEPTH=on: needs a Hopper GPU, bfloat16 and the shapes of CSM-1B's depth decoder"
        )
    return is_supported and (settings.persistent_depth == "on" or not persistent.uses_mps())


if __name__ == "__main__":
    main("backbone", BackboneSettings, open_stage, start_errors=(ModelError,))
