"""The operations in plain torch, the reference for the kernels.

N: streams of a pass, each in its slot of `rows`, [N] int64. T: steps of the pass.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from services.codec.kernels import FP16_MAX, Layer, Rows, is_half, round_to_tf32


def exchange_history(pool: Tensor, rows: Tensor, column: int, x: Tensor, history: int) -> Tensor:
    """Write the steps before the pass to the head of x, and store its last steps in the pool. In place; returns x.

    pool: [slots, width]; from `column` on it holds `history` steps. x: [N, history + T, C].
    """
    columns = slice(column, column + history * x.shape[2])
    kept = pool[:, columns]
    x[:, :history] = kept.index_select(0, rows).view(len(rows), history, x.shape[2])
    kept.index_copy_(0, rows, x[:, x.shape[1] - history :].flatten(1).to(pool.dtype))
    return x


def product(
    x: Tensor,
    layer: Layer,
    rows: Rows | None = None,
    *,
    history: int = 0,
    before: bool = False,
    after: str = "",
    added: Tensor | None = None,
) -> Tensor:
    """Each window of x, [N, taps - 1 + T, I], times the layer's weight → [N, history + T * repeat, O].

    before: apply ELU to the input. after: "elu" or "gelu", applied to the result. added: [N, any + T * repeat, O];
    its last steps are added before `after`. The first `history` steps of the result are left for exchange_history.
    rows: of the pass, where padding rows need not be computed.
    """
    half, weight = is_half(layer), layer.weight.float()
    if half:
        x = x.float()
    if before:
        x = F.elu(x)
    if layer.rounds:
        x = round_to_tf32(x)
    if half:
        x = x.clamp(-FP16_MAX, FP16_MAX).half().float()
    count, width = x.shape[0], x.shape[2]
    steps = x.shape[1] - layer.taps + 1
    weight = weight if layer.low is None else weight + layer.low
    if layer.taps > 1 and x.device.type == "cpu":
        # As a convolution, channels innermost: the windows overlap, and the product would copy each of them.
        kernel = weight.view(-1, layer.taps, width).transpose(1, 2).unsqueeze(2)
        y = F.conv2d(x.transpose(1, 2).unsqueeze(2), kernel, layer.bias).squeeze(2).transpose(1, 2)
        y = y.reshape(count, steps * layer.repeat, -1)
    else:
        windows = x.contiguous().as_strided((count, steps, layer.taps * width), (x.shape[1] * width, width, 1))
        y = F.linear(windows, weight, layer.bias).view(count, steps * layer.repeat, -1)
    if added is not None:
        y += added[:, added.shape[1] - y.shape[1] :]
    if after == "gelu":
        y = F.gelu(y)
    if half and (added is None or added.dtype == torch.float16):
        y = F.elu(y) if after == "elu" else y
        y = y.clamp(-FP16_MAX, FP16_MAX).half()
        return F.pad(y, (0, 0, history, 0))
    if not history:
        return F.elu_(y) if after == "elu" else y
    out = y.new_empty(count, history + y.shape[1], y.shape[2])
    if after == "elu":
        torch.ops.aten.elu.out(y, out=out[:, history:])
    else:
        out[:, history:] = y
    return out


def residual(x: Tensor, wide: Layer, narrow: Layer, rows: Rows | None = None, *, history: int = 0) -> Tensor:
    """A residual block: x, [N, taps - 1 + T, C], its ELU times `wide`, the ELU of that times `narrow`, plus x; its ELU,
    [N, history + T, C]."""
    return product(product(x, wide, before=True, after="elu"), narrow, history=history, added=x, after="elu")


def to_samples(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A convolution to one channel. x: [N, taps - 1 + T, C]; weight: [taps, C]; bias: [1]. Returns: [N, T]."""
    taps = len(weight)
    steps = x.shape[1] - taps + 1
    shares = F.linear(x.to(weight.dtype), weight)  # of each step in the samples that it is in, [N, taps - 1 + T, taps]
    return sum((shares[:, tap : tap + steps, tap] for tap in range(taps)), start=bias)


def rope_write(
    qkv: Tensor, cos: Tensor, sin: Tensor, rows: Tensor, offsets: Tensor, keys: Tensor, values: Tensor
) -> Tensor:
    """Apply RoPE to q and k, write k and v to the slots' rings. Returns: q [N, T, H, D].

    qkv: [N, T, 3 * H * D]. cos, sin: [N, T, D / 2], of each interleaved pair. offsets: steps before the pass, [N] int64.
    keys, values: [slots, H, ring, D]; step p lies at p mod ring.
    """
    count, steps = qkv.shape[:2]
    heads, ring, dim = keys.shape[1:]
    q, k, v = qkv.view(count, steps, 3, heads, dim).unbind(2)
    rotated = []
    for each in (q, k):
        a, b = each.unflatten(-1, (-1, 2)).unbind(-1)
        c, s = cos[:, :, None], sin[:, :, None]
        rotated.append(torch.stack([a * c - b * s, a * s + b * c], dim=-1).flatten(-2))
    place = (offsets[:, None] + torch.arange(steps, device=rows.device)) % ring  # [N, T]
    keys[rows[:, None], :, place] = rotated[1].to(keys.dtype)
    values[rows[:, None], :, place] = v
    return rotated[0].to(qkv.dtype)


def attend(
    q: Tensor, rows: Tensor, offsets: Tensor, keys: Tensor, values: Tensor, context: int, exact: bool = True
) -> Tensor:
    """Attention of each step over its slot's last `context` steps, its own included. q: [N, T, H, D]; offsets: of the
    first step. Returns: [N, T, H * D]. exact: whether products have fp32 precision, or that of their factors, TF32 or fp16.
    """
    count, steps, _, dim = q.shape
    ring = keys.shape[2]
    step = offsets[:, None] + torch.arange(steps, device=q.device)  # [N, T]
    last = step[:, -1:]
    at = last - (last - torch.arange(ring, device=q.device)) % ring  # the latest step at each place, [N, ring]
    ago = step[:, :, None] - at[:, None]
    seen = (at[:, None] >= 0) & (ago >= 0) & (ago < context)  # [N, T, ring]
    k, v = keys.index_select(0, rows), values.index_select(0, rows)
    half = keys.dtype == torch.float16
    if exact and q.device.type == "cpu":
        attended = F.scaled_dot_product_attention(q.transpose(1, 2), k, v, attn_mask=seen[:, None])
        return attended.transpose(1, 2).reshape(count, steps, -1)
    if half:
        q, k, v = q.float(), k.float(), v.float()
    elif not exact:
        q, k, v = round_to_tf32(q), round_to_tf32(k), round_to_tf32(v)
    scores = torch.einsum("nthd,nhrd->nhtr", q, k) / math.sqrt(dim)
    shares = scores.masked_fill(~seen[:, None], float("-inf")).softmax(-1)
    if half:
        shares = shares.half().float()
    elif not exact:
        shares = round_to_tf32(shares)
    attended = torch.einsum("nhtr,nhrd->nthd", shares, v).reshape(count, steps, -1)
    return attended.half() if half else attended
