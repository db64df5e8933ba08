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
BLOCK = 32  # of a product's summed length, per iteration: divides three bins of 32 and of 96 channels
FP16_MAX = 65504.0  # larger values saturate instead of becoming infinite


class Layer(NamedTuple):
    """BatchNorm(conv(x) * sigmoid(gate(x))) of a 3x3 layer in eval mode: both convolutions as one, the norm's
    factor folded into the first one's weights.

    weight: [2 * C, C_in, columns, bins], channels last; fp16 where windows are.
    bias: [2 * C]. shift: [C].
    rounds: whether its output is rounded to TF32, for the next layer's product.
    factors: of its weight, where winograd.py computes the convolution: fp32 on a CPU.
    columns: its weight, where convolution.py computes the layer.
    """

    weight: Tensor
    bias: Tensor
    shift: Tensor
    rounds: bool = False
    factors: Tensor | None = None
    columns: Tensor | None = None


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
    padding: the slot of padding rows, whose result is undefined and whose history may be left as it is; -1: there are none.
    """

    pool: Tensor
    rows: Tensor
    counts: Tensor | None = None
    padding: int = -1


def round_to_tf32(x: Tensor) -> Tensor:
    """fp32 to the nearest TF32 number, 10 bits of mantissa: add half of the last bit, truncate the rest. NaN stays: of a GPU's,
    all ones but the sign, the sum would be -0."""
    x = x.contiguous()
    return torch.where(x.isnan(), x, (x.view(torch.int32) + 0x1000 & -0x2000).view(torch.float32))


def weight_columns(weight: Tensor) -> Tensor:
    """As convolution.py takes it: [2 * C, C_in, columns, bins] → [2 * C, 3 * n * BLOCK], values and gates in turns, the part
    of each column filled up with zeros."""
    channels = len(weight) // 2
    parts = weight.permute(0, 2, 3, 1).flatten(2)  # [2 * C, columns, 3 * C_in]
    parts = torch.nn.functional.pad(parts, (0, -parts.shape[2] % BLOCK)).flatten(1)
    return torch.stack([parts[:channels], parts[channels:]], dim=1).flatten(0, 1).contiguous()


def operations_for(device: torch.device, precision: str = "fp32") -> ModuleType:
    """The module of operations for a device: on CUDA the kernels, if a first launch succeeds.

    Triton compiles its launchers at run time and fails, for example, in an image without a C compiler, or where a
    multiprocessor has less shared memory than a kernel of this precision takes.
    """
    if device.type == "cuda":
        try:
            fused = importlib.import_module("services.watermark.kernels.fused")
            _launch_once(fused, device, precision)
            return fused
        except Exception as error:  # Triton raises many types; marking works without it
            log.warning(
                "marking on %s without kernels, which takes twice as long: %s: %s", device, type(error).__name__, error
            )
    return importlib.import_module("services.watermark.kernels.plain")


def signal_for(operations: ModuleType) -> ModuleType:
    """What goes with operations_for's: signal.py, or signal_plain.py."""
    kernels = "signal" if operations.__name__.endswith("fused") else "signal_plain"
    return importlib.import_module(f"services.watermark.kernels.{kernels}")


def _launch_once(operations: ModuleType, device: torch.device, precision: str) -> None:
    """A layer from 1 to 32 channels, and one of the largest kernel. Raises: any error of compilation or launch."""
    half = precision == "fp16"
    row, one = torch.zeros(1, dtype=torch.int64, device=device), torch.ones(1, dtype=torch.int64, device=device)
    with torch.cuda.device(device):
        for given, channels in ((1, 32), (40 if half else 36, 96))[: 1 if precision == "fp32" else 2]:
            dtype = torch.float16 if half and given > 1 else torch.float32
            weight = torch.zeros(2 * channels, given, 3, 3, device=device, dtype=dtype)
            bias, shift = torch.zeros(2 * channels, device=device), torch.zeros(channels, device=device)
            layer = Layer(weight, bias, shift, columns=weight_columns(weight) if given > 1 else None)
            pool = torch.zeros(1, HISTORY, 8, channels, device=device, dtype=dtype)
            window = torch.zeros(1, HISTORY + 1, 8, given, device=device, dtype=dtype)
            operations.gated_layer(window, layer, History(pool, row, one), None)
        torch.cuda.synchronize()
