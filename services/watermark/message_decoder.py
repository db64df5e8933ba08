"""The message decoder of one model, laid out for reading short stretches.

A layer of the stock multiplies one convolution by the sigmoid of another and normalises the product. Here both are one
convolution, and the normalisation's scale is part of its weights. Columns that only serve as context are left out of
the last layers as soon as no column that is wanted depends on them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from services.watermark.weights import Layer, MsgDecoder


class MessageDecoder:
    """Immutable; threads may share it."""

    def __init__(self, stock: MsgDecoder, dtype: torch.dtype):
        self.dtype = dtype
        self._layers = [_fused(layer, dtype) for layer in stock.main if isinstance(layer, Layer)]
        linear = stock.linear
        self._linear = linear.weight.to(dtype), linear.bias.to(dtype)

    def __call__(self, magnitudes: Tensor, left: int, right: int) -> Tensor:
        """Symbol scores [B, symbols, T - left - right] of magnitudes [B, bins, T].

        left, right: columns of context. Where there are none the clip ends, for the decoder as for the stock.
        """
        x = magnitudes[:, None].to(self.dtype).contiguous(memory_format=torch.channels_last)
        left_at, right_at = left, right  # context columns that x still has
        for place, (weight, bias, shift) in enumerate(self._layers):
            behind = len(self._layers) - 1 - place  # layers that follow: so many columns of context they read
            padding = 1 - (left_at > behind), 1 - (right_at > behind)
            left_at, right_at = left_at - (left_at > behind), right_at - (right_at > behind)
            if padding[0] != padding[1]:
                x = functional.pad(x, padding).contiguous(memory_format=torch.channels_last)
            both = functional.conv2d(x, weight, bias, padding=(1, int(padding == (1, 1))))
            x = functional.glu(both, dim=1).add_(shift)
        scores: Tensor = functional.linear(x.transpose(2, 3), *self._linear)[..., 0]
        return scores[..., left_at : scores.shape[-1] - right_at]


def _fused(layer: Layer, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Weight, bias and shift: norm(conv(x) * sigmoid(gate(x))) = glu(conv2d(x, weight, bias)) + shift."""
    norm = layer.bn
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    shift = norm.bias - norm.running_mean * scale
    weight = torch.cat([layer.conv.weight * scale[:, None, None, None], layer.gate.weight])
    bias = torch.cat([layer.conv.bias * scale, layer.gate.bias])
    weight = weight.to(dtype).to(memory_format=torch.channels_last)
    return weight, bias.to(dtype), shift.to(dtype)[:, None, None]
