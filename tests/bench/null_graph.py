"""The generator's runner for CUDA devices over a device that computes nothing: its tables, uploads and copies are its own.

Runs on a CPU with a model of small shapes, whose frames and prefill passes are waits. What CUDA adds to them (pinned
memory, the launch of a graph) is not in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from baselines import random_model

from models.bundle import Bundle, GeneratorPart, LlamaShape
from services.backbone.graph_runner import GraphRunner
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


def null_graph_runner(
    bundle: Bundle, slots: int, blocks: int, launch: Callable[[int, int], Callable[[], None]]
) -> NullGraphRunner:
    """blocks: of the cache."""
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
    runner = GraphRunner(random_model(part, torch.device("cpu"), torch.float32), slots=slots, blocks=blocks)
    runner._codes.fill_(CODE)
    runner._graphs = {size: _nothing for size in runner._batch_buckets}
    runner._prefill_graphs = {size: _nothing for size in runner._prefill_buckets}
    return NullGraphRunner(runner, launch)


def _nothing() -> None:
    pass
