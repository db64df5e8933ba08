"""What a pass of Mimi's decoder computes, as a handful of operations in two forms.

plain.py says in torch what each one computes, and runs anywhere; fused.py holds the same names as
Triton kernels, one launch each, for CUDA devices and models as wide as the public Mimi. Tests hold the
one against the other.

Activations are [N, past + T, C] fp32, channels last: `past` is how many steps before the pass a
convolution looks back on, which `turn` brings from a pool of all slots, and puts back for the next pass.
A window of several steps is then one row of adjoining numbers, and a convolution a matrix product.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor


class Layer(NamedTuple):
    """A product over windows of `taps` steps, each of which gives `repeat` steps.

    weight: [repeat * O, taps * I]. For the kernels it is rounded to TF32's 10 bits, and `low` holds what that
        left over, if products are to be exact.
    rounds: whether what is multiplied is rounded as well.
    """

    weight: Tensor
    low: Tensor | None
    bias: Tensor | None  # [repeat * O]
    taps: int = 1
    repeat: int = 1
    rounds: bool = False


def rounded(x: Tensor) -> Tensor:
    """fp32 to the nearest number of TF32, which keeps 10 bits: half of the last one is added, the rest cut off."""
    return (x.contiguous().view(torch.int32) + 0x1000 & -0x2000).view(torch.float32)


LENGTH = 32  # windows and rows that kernels take are multiples of it


def operations_for(device: torch.device, lengths: Iterable[int]) -> ModuleType:
    """The module of operations for a device and a model with products of these lengths.

    A small model, such as the embedded bundle's, is no work for a GPU, and gains nothing from kernels.
    """
    suits = device.type == "cuda" and all(length % LENGTH == 0 for length in lengths)
    return importlib.import_module(f"services.codec.kernels.{'fused' if suits else 'plain'}")
