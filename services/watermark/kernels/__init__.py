"""What the embedding nets compute layer by layer, as two operations in two forms.

plain.py says in torch what each one computes, and runs anywhere; fused.py holds the same names for CUDA
devices, where cuDNN has the convolutions and one Triton kernel each all that lies between two of them: bias,
gate, norm, what is kept of each stream, and the next layer's window. Tests hold the one against the other.

A window is [B, PAST + k, rows, C], channels last: the two columns before a pass's k, which come from a pool of
all slots, and those that the pass brings. The pool keeps the last two of them for the next pass.
"""

from __future__ import annotations

import importlib
import logging
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

log = logging.getLogger(__name__)

PAST = 2  # columns that a 3x3 layer looks back on
PRECISIONS = ("fp32", "tf32", "fp16")
MOST_HALF = 65504.0  # the largest number of fp16; what is beyond stays there, and is not infinite


class Layer(NamedTuple):
    """BatchNorm(conv(x) * sigmoid(gate(x))) of a 3x3 layer in eval mode: both convolutions as one, the norm's
    factor in the first one's weights.

    weight: [2 * C, C_in, columns, bins], channels last; fp16 where windows are.
    bias: [2 * C]. shift: [C].
    rounds: whether what it gives is rounded to TF32, for the next one's product.
    """

    weight: Tensor
    bias: Tensor
    shift: Tensor
    rounds: bool = False


class Ending(NamedTuple):
    """The last layer, 1x1, from C channels to one, made as Layer is.

    weight: [2, C]. bias: [3]: both biases and the shift.
    """

    weight: Tensor
    bias: Tensor


class Kept(NamedTuple):
    """Where the last columns of a layer's input lie.

    pool: [slots, PAST, rows, C_in]. rows: slots [B] int64. counts: how many of a pass's columns each stream brings
    [B] int64, 1 at least; what comes after them leaves no trace. None: all.
    """

    pool: Tensor
    rows: Tensor
    counts: Tensor | None = None


def rounded(x: Tensor) -> Tensor:
    """fp32 to the nearest number of TF32, which keeps 10 bits: half of the last one is added, the rest cut off."""
    return (x.contiguous().view(torch.int32) + 0x1000 & -0x2000).view(torch.float32)


def operations_for(device: torch.device) -> ModuleType:
    """The module of operations for a device: on CUDA the kernels, if a first launch of one succeeds.

    Triton builds its launchers where they run, and an image without a C compiler is enough for it to fail.
    """
    if device.type == "cuda":
        try:
            fused = importlib.import_module("services.watermark.kernels.fused")
            _try(fused, device)
            return fused
        except Exception as error:  # whatever Triton raises: marking goes on without it
            log.warning(
                "marking on %s without kernels, which takes twice as long: %s: %s", device, type(error).__name__, error
            )
    return importlib.import_module("services.watermark.kernels.plain")


def _try(operations: ModuleType, device: torch.device) -> None:
    """One layer from one channel to 32. Raises: whatever building or launching raises."""
    window = torch.zeros(1, PAST + 1, 8, 1, device=device)
    layer = Layer(torch.zeros(64, 1, 3, 3, device=device), *(torch.zeros(size, device=device) for size in (64, 32)))
    row, one = torch.zeros(1, dtype=torch.int64, device=device), torch.ones(1, dtype=torch.int64, device=device)
    kept = Kept(torch.zeros(1, PAST, 8, 32, device=device), row, one)
    with torch.cuda.device(device):
        operations.gated(window, layer, kept, None)
        torch.cuda.synchronize()
