"""The generator's runner for CUDA devices, with random weights on one, or over a device that computes nothing.

The second runs on a CPU with a model of small shapes, whose frames and prefill passes are waits. Tables, uploads and
copies are the runner's own; what CUDA adds to them (page-locked memory, the launch of a graph) is not in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from baselines import random_model

from models.bundle import Bundle, GeneratorPart, LlamaShape
from services.backbone.graph_runner import GraphRunner, kernel_plan_for
from services.backbone.runner_api import Pending

CODE = 7


class NullGraphRunner:
    """See runner_api.Runner. A frame's codes are all `CODE`."""

    def __init__(self, runner: GraphRunner, launch: Callable[[int, int], Callable[[], None]]):
        """launch: null_stages.Device.launch."""
        self._runner, self._launch, self.frames_ahead = runner, launch, runner.frames_ahead
        self.begin, self.release, self.prefill = runner.begin, runner.release, runner.prefill
        self.prefilled_tokens = runner.prefilled_tokens

    def launch(self, slots: Sequence[int]) -> Pending:
        collect = self._runner.launch(slots)
        wait = self._launch(len(slots), 1)

        def landed() -> np.ndarray:
            wait()
            return collect()

        return landed


def runner(
    bundle: Bundle, slots: int, blocks: int, launch: Callable[[int, int], Callable[[], None]] | None
) -> NullGraphRunner | GraphRunner:
    """blocks: of the cache. launch: null_stages.Device.launch; None: on a GPU."""
    if launch is None:
        model = random_model(bundle.generator, torch.device("cuda"), torch.bfloat16)
        plan = partial(kernel_plan_for, persistent_depth=True)
        on_gpu = GraphRunner(
            model, slots=slots, blocks=blocks, batch_buckets=(*range(256, 4097, 128),), kernel_plan=plan
        )
        on_gpu.warm_up()
        return on_gpu
    torch.set_num_threads(1)
    backbone = LlamaShape(layers=1, heads=1, kv_heads=1, dim=16, intermediate_dim=16, max_seq_len=2048)
    part = GeneratorPart(
        bundle.generator.text_vocab_size,
        audio_vocab_size=bundle.codec_bins + 3,
        codebooks=bundle.codebooks,
        backbone=backbone,
        decoder=replace(backbone, max_seq_len=bundle.codebooks + 1),
        sources=(),
        folder=Path(),
    )
    on_cpu = GraphRunner(random_model(part, torch.device("cpu"), torch.float32), slots=slots, blocks=blocks)
    on_cpu._codes.fill_(CODE)
    on_cpu._graphs = dict.fromkeys(on_cpu._batch_buckets, _nothing)
    on_cpu._prefill_graphs = dict.fromkeys(on_cpu._prefill_buckets, _nothing)
    return NullGraphRunner(on_cpu, launch)


def _nothing() -> None:
    pass
