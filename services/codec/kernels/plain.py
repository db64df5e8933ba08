"""The operations in plain torch: what the kernels must compute.

N: streams of a pass, each in the slot that `rows` names, [N] int64. T: steps of the pass.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from services.codec.kernels import Layer, rounded


def turn(pool: Tensor, rows: Tensor, column: int, x: Tensor, past: int) -> Tensor:
    """Put the steps before the pass in front of its own, and keep its last ones. In place; returns x.

    pool: [slots, width], whose columns from `column` on are `past` steps. x: [N, past + T, C].
    """
    columns = slice(column, column + past * x.shape[2])
    x[:, :past] = pool[rows, columns].view(len(rows), past, x.shape[2])
    pool[rows, columns] = x[:, x.shape[1] - past :].flatten(1)
    return x


def product(
    x: Tensor, layer: Layer, *, past: int = 0, before: bool = False, after: str = "", added: Tensor | None = None
) -> Tensor:
    """Each window of x, [N, taps - 1 + T, I], times the layer's weight → [N, past + T * repeat, O].

    before: ELU of what is read. after: "elu" or "gelu" of what is written. added: [N, any + T * repeat, O], whose
    last steps are added first. The `past` first steps of the result are left for `turn`.
    """
    if before:
        x = F.elu(x)
    if layer.rounds:
        x = rounded(x)
    count, width = x.shape[0], x.shape[2]
    steps = x.shape[1] - layer.taps + 1
    windows = x.contiguous().as_strided((count, steps, layer.taps * width), (x.shape[1] * width, width, 1))
    weight = layer.weight if layer.low is None else layer.weight + layer.low
    y = F.linear(windows, weight, layer.bias).view(count, steps * layer.repeat, -1)
    if added is not None:
        y += added[:, added.shape[1] - y.shape[1] :]
    if after:
        y = F.elu_(y) if after == "elu" else F.gelu(y)
    if not past:
        return y
    out = y.new_empty(count, past + y.shape[1], y.shape[2])
    out[:, past:] = y
    return out


def to_samples(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A convolution to one channel. x: [N, taps - 1 + T, C]; weight: [taps, C]; bias: [1]. Returns: [N, T]."""
    return F.conv1d(x.transpose(1, 2), weight.T[None], bias)[:, 0]


def rope_write(
    qkv: Tensor, cos: Tensor, sin: Tensor, rows: Tensor, offsets: Tensor, keys: Tensor, values: Tensor
) -> Tensor:
    """Turn q and k by their steps, write k and v to the slots' rings. Returns: q [N, T, H, D].

    qkv: [N, T, 3 * H * D]. cos, sin: [N, T, D / 2], of each interleaved pair. offsets: steps done, [N] int64.
    keys, values: [slots, H, ring, D]; step p lies at p mod ring.
    """
    count, steps = qkv.shape[:2]
    heads, ring, dim = keys.shape[1:]
    q, k, v = qkv.view(count, steps, 3, heads, dim).unbind(2)
    turned = []
    for each in (q, k):
        a, b = each.unflatten(-1, (-1, 2)).unbind(-1)
        c, s = cos[:, :, None], sin[:, :, None]
        turned.append(torch.stack([a * c - b * s, a * s + b * c], dim=-1).flatten(-2))
    place = (offsets[:, None] + torch.arange(steps, device=rows.device)) % ring  # [N, T]
    keys[rows[:, None], :, place] = turned[1]
    values[rows[:, None], :, place] = v
    return turned[0]


def attend(
    q: Tensor, rows: Tensor, offsets: Tensor, keys: Tensor, values: Tensor, context: int, exact: bool = True
) -> Tensor:
    """Each step over its slot's last `context` steps, its own among them. q: [N, T, H, D]; offsets: of the
    first step. Returns: [N, T, H * D]. exact: whether products keep fp32's bits, or TF32's.
    """
    count, steps, _, dim = q.shape
    ring = keys.shape[2]
    step = offsets[:, None] + torch.arange(steps, device=q.device)  # [N, T]
    last = step[:, -1:]
    at = last - (last - torch.arange(ring, device=q.device)) % ring  # the latest step at each place, [N, ring]
    ago = step[:, :, None] - at[:, None]
    seen = (at[:, None] >= 0) & (ago >= 0) & (ago < context)  # [N, T, ring]
    k, v = keys[rows], values[rows]
    if not exact:
        q, k, v = rounded(q), rounded(k), rounded(v)
    scores = torch.einsum("nthd,nhrd->nhtr", q, k) / math.sqrt(dim)
    shares = scores.masked_fill(~seen[:, None], float("-inf")).softmax(-1)
    if not exact:
        shares = rounded(shares)
    return torch.einsum("nhtr,nhrd->nthd", shares, v).reshape(count, steps, -1)
