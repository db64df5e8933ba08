"""Triton kernel of one row of attention for each slot where all are at the same row. Twin in plain.py.

The depth decoder's case: the host knows the position, every slot's rows lie in a run of their own, and
there are few of them. So nothing has to be looked up, all rows are read at once, and no program waits
for more than one trip to memory.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from services.backbone.kernels.step import _rotation, _turned


@triton.jit(do_not_specialize=["position", "rows_all", "rows_each"])
def _aligned(
    qkv, rope, keys, values, out, position, rows_all, rows_each, scale,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr,
    GROUP: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    row, kv = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column, at = tl.arange(0, WIDTH), tl.arange(0, TILE)
    fits = column < HEAD_DIM
    own = qkv + row * (HEADS + 2 * KV_HEADS) * HEAD_DIM + column
    cos, sin = _rotation(rope, position, column, HEAD_DIM, WIDTH)
    start = (kv * rows_all.to(tl.int64) + row * rows_each) * HEAD_DIM + column
    place = start[None, :] + at[:, None] * HEAD_DIM
    known = at < position
    if OVERLAP:
        gdc_launch_dependents()
        gdc_wait()
    key = tl.load(keys + place, mask=known[:, None] & fits[None, :], other=0.0).to(tl.float32)
    value = tl.load(values + place, mask=known[:, None] & fits[None, :], other=0.0).to(tl.float32)
    new_key = tl.load(own + (HEADS + kv) * HEAD_DIM, mask=fits, other=0.0)
    new_key = tl.reshape(_turned(new_key[None, :], cos, sin, 1, WIDTH), (WIDTH,))
    new_value = tl.load(own + (HEADS + KV_HEADS + kv) * HEAD_DIM, mask=fits, other=0.0)
    tl.store(keys + start + position * HEAD_DIM, new_key, mask=fits)
    tl.store(values + start + position * HEAD_DIM, new_value, mask=fits)
    new_key, new_value = new_key.to(tl.float32), new_value.to(tl.float32)
    for member in tl.static_range(GROUP):
        head = kv * GROUP + member
        query = tl.load(own + head * HEAD_DIM, mask=fits, other=0.0)
        query = tl.reshape(_turned(query[None, :], cos, sin, 1, WIDTH), (WIDTH,)).to(tl.float32) * scale
        # The row itself is never read back: its key and its value are here.
        own_score = tl.sum(query * new_key, axis=0)
        scores = tl.where(known, tl.sum(key * query[None, :], axis=1), float("-inf"))
        best = tl.maximum(own_score, tl.max(scores, axis=0))
        shares, own_share = tl.exp(scores - best), tl.exp(own_score - best)
        sums = tl.sum(shares[:, None] * value, axis=0) + own_share * new_value
        sums = sums / (own_share + tl.sum(shares, axis=0))
        tl.store(out + (row * HEADS + head) * HEAD_DIM + column, sums.to(out.dtype.element_ty), mask=fits)


def aligned_attend(
    qkv: Tensor, rope: Tensor, position: int, each: int, keys: Tensor, values: Tensor, heads: int, overlap: bool = False
) -> Tensor:
    count, (kv_heads, blocks, rows, head_dim) = qkv.shape[0], keys.shape
    out = torch.empty(count, heads * head_dim, device=qkv.device, dtype=qkv.dtype)
    group = heads // kv_heads
    _aligned[(count, kv_heads)](
        qkv, rope, keys, values, out, position, blocks * rows, each * rows, 1 / math.sqrt(head_dim),
        HEADS=heads, KV_HEADS=kv_heads, HEAD_DIM=head_dim, WIDTH=triton.next_power_of_2(head_dim),
        TILE=max(16, triton.next_power_of_2(position)), GROUP=group, OVERLAP=overlap,
        num_warps=4, launch_pdl=overlap,
    )  # fmt: skip
    return out
