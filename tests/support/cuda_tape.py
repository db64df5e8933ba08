"""A stand-in for CUDA's graphs on the CPU: what is recorded is done again by the same operations on the same memory.

As with a graph, nothing of Python's runs in a replay: numbers are what they were when it was recorded, tensors are
where they were. What a capture refuses, this refuses too: asking a tensor for its value, or making one of Python's.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_REFUSED = (
    "item",
    "_local_scalar_dense",
    "is_nonzero",
    "nonzero",
    "masked_select",
    "equal",
    "lift_fresh",
    "istft",
    "unique",
)


class CannotCapture(RuntimeError):
    """cudaErrorStreamCaptureUnsupported, so to speak."""


def _tensors(values) -> list[Tensor]:
    return [each for each in tree_leaves(values) if isinstance(each, Tensor)]


def _places(values) -> set[int]:
    return {each.untyped_storage().data_ptr() for each in _tensors(values)}


class _Recording(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.done: list[tuple] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.__name__.split(".")[0]
        masks = name.startswith("index") and any(each.dtype == torch.bool for each in _tensors((args[1:], kwargs)))
        if name in _REFUSED or masks:
            raise CannotCapture(f"{func} in a capture")
        result = func(*args, **kwargs)
        writes = any(each.alias_info is not None and each.alias_info.is_write for each in func._schema.arguments)
        if writes or not _places(result) <= _places((args, kwargs)):  # views are where they are
            self.done.append((func, args, kwargs, None if writes else result))
        return result


class Tape:
    """In place of engine.graphs.GraphRecorder."""

    def __init__(self) -> None:
        self.replays = 0
        self.recorded = 0

    def __call__(self, run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        run()
        with _Recording() as recording:
            result = run()
        self.recorded += 1

        def replay() -> None:
            self.replays += 1
            for func, args, kwargs, wanted in recording.done:
                got = func(*args, **kwargs)
                if wanted is not None:
                    for old, new in zip(_tensors(wanted), _tensors(got), strict=True):
                        old.copy_(new)

        return replay, result
