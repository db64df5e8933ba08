"""Which kernels a call launches on a GPU, or operations on a CPU, how often, and how long each takes."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable

import torch
from baselines import synchronize
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile


class KernelTimes:
    def __init__(self, call: Callable[[], object], device: torch.device, count: int):
        """Of `count` calls, one after another."""
        is_cuda = device.type == "cuda"
        with profile(activities=[ProfilerActivity.CUDA if is_cuda else ProfilerActivity.CPU]) as seen:
            for _ in range(count):
                call()
            synchronize(device)
        self._count = count
        self._times_us: dict[str, list[float]] = defaultdict(list)
        for event in seen.events():
            if not is_cuda or event.device_type == DeviceType.CUDA:
                self._times_us[event.name].append(event.time_range.elapsed_us())

    @property
    def launches(self) -> float:
        """Of one call."""
        return sum(map(len, self._times_us.values())) / self._count

    @property
    def busy_ms(self) -> float:
        """All kernels of one call; those that overlap count each."""
        return sum(map(sum, self._times_us.values())) / 1e3 / self._count

    def table(self, what: str, rows: int) -> str:
        """Markdown, the costliest `rows` kernels. what: the name of a call."""
        lines = [f"| a {what} | us each | ms a {what} | kernel |", "|---|---|---|---|"]
        for name, each in sorted(self._times_us.items(), key=lambda item: -sum(item[1]))[:rows]:
            a_call = (
                f"{len(each) / self._count:.0f} | {statistics.median(each):.2f} | {sum(each) / 1e3 / self._count:.3f}"
            )
            lines.append(f"| {a_call} | {name[:90]} |")
        return "\n".join(lines)
