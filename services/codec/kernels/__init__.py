"""What a pass of Mimi's decoder computes, as a handful of operations in two forms.

plain.py says in torch what each one computes, and runs anywhere; fused.py holds the same names as
Triton kernels, one launch each, for CUDA devices. Tests hold the one against the other.

Activations are [N, past + T, C] fp32, channels last: `past` is how many steps before the pass a
convolution looks back on, which `turn` brings from a pool of all slots, and puts back for the next pass.
A window of several steps is then one row of adjoining numbers, and a convolution a matrix product.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor


class Layer(NamedTuple):
    """A product over windows of `taps` steps, each of which gives `repeat` steps.

    weight: [repeat * O, taps * I], rounded to TF32's 10 bits where `low` holds what that left over.
    """

    weight: Tensor
    low: Tensor | None
    bias: Tensor | None  # [repeat * O]
    taps: int = 1
    repeat: int = 1


def operations_for(device: torch.device) -> ModuleType:
    """The module of operations for a device. Triton is asked for on CUDA alone."""
    return importlib.import_module(f"services.codec.kernels.{'fused' if device.type == 'cuda' else 'plain'}")
