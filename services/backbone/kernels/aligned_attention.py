"""Triton kernel of a decode step's attention where all slots are at the same position.

The depth decoder's case: the host knows the position, every slot's blocks are contiguous, and there are
few positions. So there is no table, all positions are read at once, and a program waits for memory once.
reference.py says what it computes.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from services.backbone.kernels.step_attention import _rotated, _rotation


@triton.jit(do_not_specialize=["position", "tokens_all", "tokens_per_slot", "picked_stride"])
def _aligned(
    qkv, picked, rope, keys, values, out, position, tokens_all, tokens_per_slot, picked_stride, scale,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr,
    GROUP: tl.constexpr, PADDED: tl.constexpr, IS_PICKED: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    row, kv = tl.program_id(0).to(tl.int64), tl.program_id(1)
    member, column, at = tl.arange(0, PADDED), tl.arange(0, WIDTH), tl.arange(0, TILE)
    head = kv * GROUP + member
    fits = column < HEAD_DIM
    here = (member < GROUP)[:, None] & fits[None, :]
    cos, sin = _rotation(rope, position, column, HEAD_DIM, WIDTH)
    start = (kv * tokens_all.to(tl.int64) + row * tokens_per_slot) * HEAD_DIM
    place = start + at[:, None] * HEAD_DIM + column[None, :]
    before = (at < position)[:, None] & fits[None, :]
    if OVERLAP:
        gdc_launch_dependents()
        gdc_wait()
    own_row = tl.load(picked + row * picked_stride) if IS_PICKED else row
    own = qkv + own_row * (HEADS + 2 * KV_HEADS) * HEAD_DIM
    key = tl.load(keys + place, mask=before, other=0.0)
    value = tl.load(values + place, mask=before, other=0.0)
    query = tl.load(own + (head * HEAD_DIM)[:, None] + column[None, :], mask=here, other=0.0)
    query = _rotated(query, cos, sin, PADDED, WIDTH)
    new_key = tl.load(own + (HEADS + kv) * HEAD_DIM + column, mask=fits, other=0.0)
    new_key = tl.reshape(_rotated(new_key[None, :], cos, sin, 1, WIDTH), (WIDTH,))
    new_value = tl.load(own + (HEADS + KV_HEADS + kv) * HEAD_DIM + column, mask=fits, other=0.0)
    own_place = start + position * HEAD_DIM + column
    tl.store(keys + own_place, new_key, mask=fits)
    tl.store(values + own_place, new_value, mask=fits)
    # The new key and value are never read back from the cache: they are put in place here.
    is_own = (at == position)[:, None]
    key = tl.where(is_own, new_key[None, :], key)
    value = tl.where(is_own, new_value[None, :], value)
    # Keys by queries: tensor cores take no fewer than 16 rows of the first, of which few heads would leave most empty.
    scores = tl.dot(key, tl.trans(query), input_precision="ieee") * scale  # [TILE, PADDED]
    scores = tl.where((at <= position)[:, None], scores, float("-inf"))
    shares = tl.exp(scores - tl.max(scores, axis=0)[None, :])
    sums = tl.dot(tl.trans(value), shares.to(value.dtype), input_precision="ieee") / tl.sum(shares, axis=0)[None, :]
    tl.store(
        out + (row * HEADS + head)[None, :] * HEAD_DIM + column[:, None],
        sums.to(out.dtype.element_ty),
        mask=tl.trans(here),
    )


def aligned_attend(
    qkv: Tensor,
    rope: Tensor,
    position: int,
    blocks_per_slot: int,
    keys: Tensor,
    values: Tensor,
    heads: int,
    overlap: bool = False,
    picked: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    kv_heads, blocks, block_tokens, head_dim = keys.shape
    count = len(qkv if picked is None else picked)
    assert qkv.is_contiguous()
    if out is None:
        out = torch.empty(count, heads * head_dim, device=qkv.device, dtype=qkv.dtype)
    assert out.is_contiguous()
    group = heads // kv_heads
    # One warp a program: synchronising several takes longer than the work.
    _aligned[(count, kv_heads)](
        qkv, qkv if picked is None else picked, rope, keys, values, out, position, blocks * block_tokens,
        blocks_per_slot * block_tokens, 0 if picked is None else picked.stride(0), 1 / math.sqrt(head_dim),
        HEADS=heads, KV_HEADS=kv_heads, HEAD_DIM=head_dim, WIDTH=triton.next_power_of_2(head_dim),
        TILE=max(16, triton.next_power_of_2(position + 1)), GROUP=group, PADDED=max(8, triton.next_power_of_2(group)),
        IS_PICKED=picked is not None, OVERLAP=overlap, num_warps=1 if keys.dtype == torch.bfloat16 else 4, launch_pdl=overlap,
    )  # fmt: skip
    return out
