"""The operations of a pass of Mimi's decoder, each implemented twice.

plain.py defines them in torch and runs anywhere. fused.py has the same names as Triton kernels, one launch each,
for CUDA devices and models as wide as the public Mimi. Tests compare the two.

Activations are [N, history + T, C], fp32 or fp16, channels last: `history` is the number of earlier steps that a
convolution depends on. `exchange_history` loads them from a pool of all slots and stores the new ones for the next
pass. A window of several steps is then contiguous, and a convolution is a matrix product.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor


class Layer(NamedTuple):
    """A product over windows of `taps` steps; each window gives `repeat` steps.

    weight: [repeat * O, taps * I]. For the kernels it is rounded to TF32's 10 bits; for exact products `low`
        holds the remainder. In fp16 the other factor is rounded to fp16, and so is the result, unless it is added to fp32.
    rounds: whether the other factor is rounded to TF32.
    """

    weight: Tensor
    low: Tensor | None
    bias: Tensor | None  # [repeat * O]
    taps: int = 1
    repeat: int = 1
    rounds: bool = False


class Rows(NamedTuple):
    """The slot of each stream of a pass, and the slot of its padding rows, which come last: what they give is undefined."""

    slots: Tensor  # [N] int64
    padding: int


def round_to_tf32(x: Tensor) -> Tensor:
    """fp32 to the nearest TF32 number, 10 bits of mantissa: add half of the last bit, truncate the rest."""
    return (x.contiguous().view(torch.int32) + 0x1000 & -0x2000).view(torch.float32)


def is_half(layer: Layer) -> bool:
    return layer.weight.dtype == torch.float16


def precision_of(layer: Layer) -> str:
    """Of the kernels' products."""
    return "fp16" if is_half(layer) else "tf32" if layer.low is None else "fp32"


PRECISIONS = ("fp32", "tf32", "fp16")
FP16_MAX = 65504.0  # larger values saturate instead of becoming infinite
LENGTH = 32  # the kernels need windows and rows of a multiple of it


def operations_for(device: torch.device, lengths: Iterable[int]) -> ModuleType:
    """The module of operations for a device and a model with products of these lengths.

    A small model, such as the bundled one, does not keep a GPU busy and gains nothing from kernels.
    """
    suits = device.type == "cuda" and all(length % LENGTH == 0 for length in lengths)
    return importlib.import_module(f"services.codec.kernels.{'fused' if suits else 'plain'}")
