"""Pace and replay of training steps: schedules by the clock, whole steps as CUDA graphs."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor


class Clock:
    """A training run of `budget_s` seconds that started `spent_s` seconds ago (over all its sittings)."""

    def __init__(self, budget_s: float, spent_s: float = 0.0):
        self.budget_s, self.began = budget_s, time.monotonic() - spent_s

    @property
    def spent_s(self) -> float:
        return time.monotonic() - self.began

    @property
    def done(self) -> float:
        """Share of the run behind us, 0 to 1."""
        return min(1.0, self.spent_s / self.budget_s)

    def rate(self, step: int, peak: float, warm_up: int, floor: float = 0.02) -> float:
        """Learning rate: linear warm-up by steps, then cosine by the clock."""
        cosine = floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * self.done))
        return peak * min(1.0, (step + 1) / warm_up) * cosine


class Replayed:
    """Runs `step() -> Tensor` eagerly a few times, then as one CUDA graph; eagerly for ever on a CPU.

    `step` must read its input from tensors that stay in place and return a tensor of figures.
    """

    def __init__(self, step: Callable[[], Tensor], warm_up: int = 4, capture: bool = True):
        self.step, self.left, self.graph = step, warm_up, None
        self.capture = capture and torch.cuda.is_available()

    def __call__(self) -> Tensor:
        if self.graph is not None:
            self.graph.replay()
            return self.figures
        if not self.capture or self.left > 0:
            self.left -= 1
            side = torch.cuda.Stream() if self.capture else None
            if side is None:
                return self.step()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                figures = self.step()
            torch.cuda.current_stream().wait_stream(side)
            return figures
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self.figures = self.step()
        self.graph = graph
        graph.replay()
        return self.figures


class Log:
    """Appends one JSON line per report and prints it."""

    def __init__(self, path: Path, names: list[str]):
        self.path, self.names, self.last = path, names, (time.monotonic(), 0)
        path.parent.mkdir(parents=True, exist_ok=True)

    def __call__(self, step: int, figures: Tensor, **extra: float) -> None:
        now, (before, steps) = time.monotonic(), self.last
        self.last = (now, step)
        row = {"step": step, "steps_per_s": round((step - steps) / max(now - before, 1e-6), 2), **extra}
        row |= {name: round(value, 4) for name, value in zip(self.names, figures.tolist(), strict=True)}
        with open(self.path, "a") as file:
            file.write(json.dumps(row) + "\n")
        print(self.path.stem, row, flush=True)


def replace(path: Path, payload: object) -> None:
    """torch.save that never leaves half a file behind."""
    draft = path.with_name(f".{path.name}")
    torch.save(payload, draft)
    draft.replace(path)
