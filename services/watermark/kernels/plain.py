"""The operations in plain torch, the reference for the kernels. B: streams of a pass. k: columns of each."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from services.watermark.kernels import FP16_MAX, HISTORY, History, Layer, OutputLayer, round_to_tf32
from services.watermark.kernels.winograd import convolve
from services.watermark.state_pool import last_columns


def gated_layer(
    window: Tensor, layer: Layer, history: History, inside: Tensor | None, extra: Tensor | None = None
) -> Tensor:
    """A layer: its input's window [B, HISTORY + k, rows, C_in] → the next one's [B, HISTORY + k, rows, width].

    history: of the next layer, which may have more channels than this layer's C: `extra` [B, k, rows, E] fills
        those from C on, zeros the rest.
    inside: whether columns lie within their streams [B, k]; others are set to zero. None: all do.
    """
    count, columns, channels = len(window), window.shape[1] - HISTORY, len(layer.shift)
    out = history.pool.new_empty(count, HISTORY + columns, *history.pool.shape[2:])
    new = out[:, HISTORY:]
    own = new[..., :channels]
    for part, both in _convolved(window, layer):
        if out.dtype == both.dtype:
            torch.ops.aten.glu.out(both, -1, out=own[part])
        else:
            own[part] = (F.glu(both) + layer.shift).clamp_(-FP16_MAX, FP16_MAX)
    if out.dtype == layer.shift.dtype:
        own += layer.shift
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


def output_layers(
    window: Tensor,
    layer: Layer,
    output: OutputLayer,
    inside: Tensor | None,
    rows: Tensor | None = None,
    padding: int = -1,
) -> Tensor:
    """The last two layers: the window [B, HISTORY + k, rows, C_in] → magnitudes [B, k, rows] fp32; `inside` as above.

    rows, padding: see History.
    """
    count, columns = len(window), window.shape[1] - HISTORY
    mark = window.new_empty(count, columns, window.shape[2], dtype=torch.float32)
    for part, both in _convolved(window, layer):
        hidden = F.glu(both) + layer.shift
        value, gate = F.linear(hidden, output.weight, output.bias[:2]).unbind(-1)
        mark[part] = torch.addcmul(output.bias[2], value, gate.sigmoid_()).abs_()
    return mark if inside is None else mark.masked_fill(~inside[:, :, None], 0)


def _convolved(window: Tensor, layer: Layer) -> Iterator[tuple[tuple[int | slice, slice], Tensor]]:
    """Values and gates, fp32, in parts: indices of streams and columns, and their [..., rows, 2 * C]. Pads bins, not columns."""
    if layer.factors is not None:
        for stream, columns, both in convolve(window, layer.factors, layer.bias):
            yield (stream, columns), both
        return
    x, weight, bias = window.permute(0, 3, 1, 2), layer.weight, layer.bias
    if weight.dtype == torch.float32:
        both = F.conv2d(x, weight, bias, padding=(0, 1)).permute(0, 2, 3, 1)
    else:  # as on the device: fp32 sums, the convolution's output in fp16, then the bias
        both = F.conv2d(x.float(), weight.float(), padding=(0, 1)).clamp_(-FP16_MAX, FP16_MAX).half().float()
        both = both.permute(0, 2, 3, 1) + bias
    yield (slice(None), slice(None)), both
