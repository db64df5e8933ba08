"""Frames without an engine: slots with a given length of context, and graphs of a chosen kernel plan."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import torch
from baselines import synchronize

from models.bundle import GeneratorPart
from services.backbone.blocks import blocks_for
from services.backbone.fused_llama import KernelPlan
from services.backbone.graph_runner import GraphRunner
from services.backbone.model import CsmModel
from services.engine.graphs import GraphRecorder

_SPARE = 100  # tokens beyond the context that a slot has blocks for


class Frames:
    """A runner whose slots look prefilled; their keys and values are noise."""

    def __init__(self, model: CsmModel, part: GeneratorPart, slots: int, context: int):
        self._context, each = context, blocks_for(context + _SPARE)
        self.runner = GraphRunner(model, slots=slots, blocks=slots * each)
        state, cache = self.runner._state, self.runner._frame.backbone.cache
        device = state.positions.device
        with torch.inference_mode():
            state.tables[:slots, :each] = torch.randperm(slots * each, device=device).view(slots, each).int()
            state.seeds[:slots] = torch.arange(slots, device=device) + 1
            state.top_k[:slots], state.temperature[:slots] = 50, 0.9
            for store in (cache.keys, cache.values):
                for layer in store:
                    layer.normal_()
            self._inputs = torch.randn_like(state.next_inputs)

    @torch.inference_mode()
    def rewind(self, batch: int) -> None:
        state = self.runner._state
        state.positions[:-1], state.frames[:-1] = self._context, 0
        state.next_inputs.copy_(self._inputs)
        self.runner._step.batch[:batch] = torch.arange(batch, device=state.positions.device)

    @property
    def before_rewind(self) -> int:
        """Frames that may follow a rewind() before the slots' blocks are full."""
        return _SPARE - 1

    def build(self, batch: int, plan: KernelPlan) -> Callable[[], None]:
        """Returns: a function that computes a frame, by a captured graph where there is a GPU."""
        runner = self.runner
        runner._kernel_plan = lambda _: plan
        if not runner._is_cuda:
            return torch.inference_mode()(lambda: runner._run_frame(batch))
        with torch.inference_mode():
            replay, _ = GraphRecorder()(lambda: runner._run_frame(batch))
        return replay

    def codes(self, batch: int) -> torch.Tensor:
        return self.runner._codes[:batch].clone()

    def times_ms(self, frame: Callable[[], None], batch: int, count: int) -> list[float]:
        """Of `count` frames one after another, from the same rows each time."""
        device, times = self.runner.device, []
        for _ in range(3):
            frame()
        self.rewind(batch)
        synchronize(device)
        if device.type != "cuda":
            for _ in range(count):
                began = time.perf_counter()
                frame()
                times.append((time.perf_counter() - began) * 1e3)
            return times
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
        marks[0].record()
        for mark in marks[1:]:
            frame()
            mark.record()
        synchronize(device)
        return [before.elapsed_time(after) for before, after in itertools.pairwise(marks)]
