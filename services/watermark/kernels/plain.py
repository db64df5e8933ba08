"""The operations in plain torch, the reference for the kernels. B: streams of a pass. k: columns of each."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from services.watermark.kernels import FP16_MAX, HISTORY, History, Layer, OutputLayer, round_to_tf32
from services.watermark.state_pool import last_columns


def gated_layer(
    window: Tensor, layer: Layer, history: History, inside: Tensor | None, extra: Tensor | None = None
) -> Tensor:
    """A layer: its input's window [B, HISTORY + k, rows, C_in] → the next one's [B, HISTORY + k, rows, width].

    history: of the next layer, which may have more channels than this layer's C: `extra` [B, k, rows, E] fills
        those from C on, zeros the rest.
    inside: whether columns lie within their streams [B, k]; others are set to zero. None: all do.
    """
    both = _convolve(window, layer)
    (count, columns), channels = both.shape[:2], len(layer.shift)
    out = history.pool.new_empty(count, HISTORY + columns, *history.pool.shape[2:])
    new = out[:, HISTORY:]
    if out.dtype == both.dtype:
        torch.ops.aten.glu.out(both, 3, out=new[..., :channels])
        new[..., :channels] += layer.shift
    else:
        new[..., :channels] = (F.glu(both, dim=3) + layer.shift).clamp_(-FP16_MAX, FP16_MAX)
    if extra is not None:
        end = channels + extra.shape[3]
        new[..., channels:end] = extra.clamp(-FP16_MAX, FP16_MAX) if out.dtype == torch.float16 else extra
        new[..., end:].zero_()
    if layer.rounds:
        new.copy_(round_to_tf32(new))
    if inside is not None:
        new.masked_fill_(~inside[:, :, None, None], 0)
    out[:, :HISTORY] = history.pool.index_select(0, history.rows)
    history.pool.index_copy_(
        0, history.rows, last_columns(out, history.counts, torch.arange(HISTORY, device=out.device))
    )
    return out


def output_layers(window: Tensor, layer: Layer, output: OutputLayer, inside: Tensor | None) -> Tensor:
    """The last two layers: the window [B, HISTORY + k, rows, C_in] → magnitudes [B, k, rows] fp32; `inside` as above."""
    hidden = F.glu(_convolve(window, layer), dim=3) + layer.shift
    value, gate = F.linear(hidden, output.weight, output.bias[:2]).unbind(3)
    mark = torch.addcmul(output.bias[2], value, gate.sigmoid()).abs()
    return mark if inside is None else mark.masked_fill(~inside[:, :, None], 0)


def _convolve(window: Tensor, layer: Layer) -> Tensor:
    """Values and gates [B, k, rows, 2 * C] fp32. Pads bins, not columns."""
    x, weight, bias = window.permute(0, 3, 1, 2), layer.weight, layer.bias
    if weight.dtype == torch.float32:
        return F.conv2d(x, weight, bias, padding=(0, 1)).permute(0, 2, 3, 1)
    # As on the device: fp32 sums, the convolution's output in fp16, then the bias.
    both = F.conv2d(x.float(), weight.float(), padding=(0, 1)).clamp_(-FP16_MAX, FP16_MAX).half().float()
    return both.permute(0, 2, 3, 1) + bias
