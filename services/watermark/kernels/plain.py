"""The operations in plain torch: what the kernels must compute. B: streams of a pass. k: columns of each."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from services.watermark.kernels import MOST_HALF, PAST, Ending, Kept, Layer, rounded
from services.watermark.slots import last


def gated(window: Tensor, layer: Layer, kept: Kept, inside: Tensor | None, extra: Tensor | None = None) -> Tensor:
    """A layer: its input's window [B, PAST + k, rows, C_in] → the next one's [B, PAST + k, rows, width].

    kept: of the next layer, whose width may be more than this one's C; it then sees `extra` [B, k, rows, E]
        in the channels from C on, and zeros in the rest.
    inside: columns that lie within their streams [B, k]; the others are zeros. None: all do.
    """
    both = _convolved(window, layer)
    (count, columns), channels = both.shape[:2], len(layer.shift)
    out = kept.pool.new_empty(count, PAST + columns, *kept.pool.shape[2:])
    new = out[:, PAST:]
    if out.dtype == both.dtype:
        torch.ops.aten.glu.out(both, 3, out=new[..., :channels])
        new[..., :channels] += layer.shift
    else:
        new[..., :channels] = (F.glu(both, dim=3) + layer.shift).clamp_(-MOST_HALF, MOST_HALF)
    if extra is not None:
        end = channels + extra.shape[3]
        new[..., channels:end] = extra.clamp(-MOST_HALF, MOST_HALF) if out.dtype == torch.float16 else extra
        new[..., end:].zero_()
    if layer.rounds:
        new.copy_(rounded(new))
    if inside is not None:
        new.masked_fill_(~inside[:, :, None, None], 0)
    out[:, :PAST] = kept.pool.index_select(0, kept.rows)
    kept.pool.index_copy_(0, kept.rows, last(out, kept.counts, torch.arange(PAST, device=out.device)))
    return out


def ended(window: Tensor, layer: Layer, ending: Ending, inside: Tensor | None) -> Tensor:
    """The last two layers: the window [B, PAST + k, rows, C_in] → magnitudes [B, k, rows] fp32; `inside` as above."""
    hidden = F.glu(_convolved(window, layer), dim=3) + layer.shift
    value, gate = F.linear(hidden, ending.weight, ending.bias[:2]).unbind(3)
    mark = torch.addcmul(ending.bias[2], value, gate.sigmoid()).abs()
    return mark if inside is None else mark.masked_fill(~inside[:, :, None], 0)


def _convolved(window: Tensor, layer: Layer) -> Tensor:
    """Values and gates [B, k, rows, 2 * C] fp32; bins are padded, columns are not."""
    x, weight, bias = window.permute(0, 3, 1, 2), layer.weight, layer.bias
    if weight.dtype == torch.float32:
        return F.conv2d(x, weight, bias, padding=(0, 1)).permute(0, 2, 3, 1)
    # Sums are in fp32 everywhere; what a convolution gives is fp16 again, and the bias comes after.
    both = F.conv2d(x.float(), weight.float(), padding=(0, 1)).clamp_(-MOST_HALF, MOST_HALF).half().float()
    return both.permute(0, 2, 3, 1) + bias
