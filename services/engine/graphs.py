"""CUDA graphs: work captured once and replayed, without the launches that take longer than small kernels run."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import TypeVar

import torch

Result = TypeVar("Result")


class GraphRecorder:
    """Captures functions on the current device. Capture the largest first: the others reuse its memory.

    All captures share memory and one stream (cuBLAS keeps a workspace of 32 MiB a stream), so replays must not overlap.
    """

    def __init__(self) -> None:
        self._stream, self._pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()

    def __call__(self, run: Callable[[], Result]) -> tuple[Callable[[], None], Result]:
        """Returns: what replays `run`, and its result, which every replay writes.

        `run` is called twice: capture forbids the compilation and the set-up of libraries of a first call.
        Raises: RuntimeError when the device refuses.
        """
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            result = run()
        return graph.replay, result


def on_device(device: torch.device) -> contextlib.AbstractContextManager:
    """Make `device` current: a thread may have another one current, and kernels go to the current one."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


@functools.cache
def has_large_blocks(device: torch.device) -> bool:
    """Whether a block of kernels can have 120 KiB of shared memory: on an A100, H100 or B200; an L4 or RTX has 99. A CPU can."""
    if device.type != "cuda":
        return True
    major, minor = torch.cuda.get_device_capability(device)
    return (major, minor) == (8, 0) or major in (9, 10)
