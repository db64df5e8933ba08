"""The layers of the embedding nets as two operations, each implemented twice.

plain.py defines them in torch and runs anywhere. fused.py has the same names for CUDA devices: cuDNN computes
the convolutions, and one Triton kernel each does everything between two of them: bias, gate, norm, the streams'
history and the next layer's window. Tests compare the two.

A window is [B, HISTORY + k, rows, C], channels last: the two columns before a pass, from a pool of all slots,
and the k columns of the pass. The pool keeps the last two for the next pass.
"""

from __future__ import annotations

import importlib
import logging
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

log = logging.getLogger(__name__)

HISTORY = 2  # earlier columns that a 3x3 layer depends on
PRECISIONS = ("fp32", "tf32", "fp16")
FP16_MAX = 65504.0  # larger values saturate instead of becoming infinite


class Layer(NamedTuple):
    """BatchNorm(conv(x) * sigmoid(gate(x))) of a 3x3 layer in eval mode: both convolutions as one, the norm's
    factor folded into the first one's weights.

    weight: [2 * C, C_in, columns, bins], channels last; fp16 where windows are.
    bias: [2 * C]. shift: [C].
    rounds: whether its output is rounded to TF32, for the next layer's product.
    factors: of its weight, where winograd.py computes the convolution: fp32 on a CPU.
    """

    weight: Tensor
    bias: Tensor
    shift: Tensor
    rounds: bool = False
    factors: Tensor | None = None


class OutputLayer(NamedTuple):
    """The last layer, 1x1, from C channels to one, folded like Layer.

    weight: [2, C]. bias: [3]: both biases and the shift.
    """

    weight: Tensor
    bias: Tensor


class History(NamedTuple):
    """The pool with the last columns of a layer's input.

    pool: [slots, HISTORY, rows, C_in]. rows: slots [B] int64. counts: how many of a pass's columns each stream
    brings [B] int64, at least 1; later columns are not stored. None: all.
    """

    pool: Tensor
    rows: Tensor
    counts: Tensor | None = None


def round_to_tf32(x: Tensor) -> Tensor:
    """fp32 to the nearest TF32 number, 10 bits of mantissa: add half of the last bit, truncate the rest."""
    return (x.contiguous().view(torch.int32) + 0x1000 & -0x2000).view(torch.float32)


def operations_for(device: torch.device) -> ModuleType:
    """The module of operations for a device: on CUDA the kernels, if a first launch succeeds.

    Triton compiles its launchers at run time and fails, for example, in an image without a C compiler.
    """
    if device.type == "cuda":
        try:
            fused = importlib.import_module("services.watermark.kernels.fused")
            _launch_once(fused, device)
            return fused
        except Exception as error:  # Triton raises many types; marking works without it
            log.warning(
                "marking on %s without kernels, which takes twice as long: %s: %s", device, type(error).__name__, error
            )
    return importlib.import_module("services.watermark.kernels.plain")


def _launch_once(operations: ModuleType, device: torch.device) -> None:
    """One layer from 1 to 32 channels. Raises: any error of compilation or launch."""
    window = torch.zeros(1, HISTORY + 1, 8, 1, device=device)
    weight, bias, shift = (torch.zeros(*size, device=device) for size in ((64, 1, 3, 3), (64,), (32,)))
    layer = Layer(weight, bias, shift)
    row, one = torch.zeros(1, dtype=torch.int64, device=device), torch.ones(1, dtype=torch.int64, device=device)
    history = History(torch.zeros(1, HISTORY, 8, 32, device=device), row, one)
    with torch.cuda.device(device):
        operations.gated_layer(window, layer, history, None)
        torch.cuda.synchronize()
