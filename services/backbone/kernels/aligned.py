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
    GROUP: tl.constexpr, PADDED: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    row, kv = tl.program_id(0).to(tl.int64), tl.program_id(1)
    member, column, at = tl.arange(0, PADDED), tl.arange(0, WIDTH), tl.arange(0, TILE)
    head = kv * GROUP + member
    fits = column < HEAD_DIM
    here = (member < GROUP)[:, None] & fits[None, :]
    own = qkv + row * (HEADS + 2 * KV_HEADS) * HEAD_DIM
    cos, sin = _rotation(rope, position, column, HEAD_DIM, WIDTH)
    start = (kv * rows_all.to(tl.int64) + row * rows_each) * HEAD_DIM
    place = start + at[:, None] * HEAD_DIM + column[None, :]
    before = (at < position)[:, None] & fits[None, :]
    if OVERLAP:
        gdc_launch_dependents()
        gdc_wait()
    key = tl.load(keys + place, mask=before, other=0.0)
    value = tl.load(values + place, mask=before, other=0.0)
    query = tl.load(own + (head * HEAD_DIM)[:, None] + column[None, :], mask=here, other=0.0)
    query = _turned(query, cos, sin, PADDED, WIDTH)
    new_key = tl.load(own + (HEADS + kv) * HEAD_DIM + column, mask=fits, other=0.0)
    new_key = tl.reshape(_turned(new_key[None, :], cos, sin, 1, WIDTH), (WIDTH,))
    new_value = tl.load(own + (HEADS + KV_HEADS + kv) * HEAD_DIM + column, mask=fits, other=0.0)
    own_place = start + position * HEAD_DIM + column
    tl.store(keys + own_place, new_key, mask=fits)
    tl.store(values + own_place, new_value, mask=fits)
    # The row itself is never read back: it takes its place among the others here.
    is_own = (at == position)[:, None]
    key = tl.where(is_own, new_key[None, :], key)
    value = tl.where(is_own, new_value[None, :], value)
    scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
    scores = tl.where((at <= position)[None, :], scores, float("-inf"))
    shares = tl.exp(scores - tl.max(scores, axis=1)[:, None])
    sums = tl.dot(shares.to(value.dtype), value, input_precision="ieee") / tl.sum(shares, axis=1)[:, None]
    tl.store(out + (row * HEADS + head)[:, None] * HEAD_DIM + column[None, :], sums.to(out.dtype.element_ty), mask=here)


def aligned_attend(
    qkv: Tensor, rope: Tensor, position: int, each: int, keys: Tensor, values: Tensor, heads: int, overlap: bool = False
) -> Tensor:
    count, (kv_heads, blocks, rows, head_dim) = qkv.shape[0], keys.shape
    out = torch.empty(count, heads * head_dim, device=qkv.device, dtype=qkv.dtype)
    group = heads // kv_heads
    # One warp a program: what warps would have to tell each other takes longer than the work.
    _aligned[(count, kv_heads)](
        qkv, rope, keys, values, out, position, blocks * rows, each * rows, 1 / math.sqrt(head_dim),
        HEADS=heads, KV_HEADS=kv_heads, HEAD_DIM=head_dim, WIDTH=triton.next_power_of_2(head_dim),
        TILE=max(16, triton.next_power_of_2(position + 1)), GROUP=group, PADDED=max(16, triton.next_power_of_2(group)),
        OVERLAP=overlap, num_warps=1 if keys.dtype == torch.bfloat16 else 4, launch_pdl=overlap,
    )  # fmt: skip
    return out
