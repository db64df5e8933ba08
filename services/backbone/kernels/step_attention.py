"""Triton kernel of one decode step's attention: rotation, cache write and attention in one launch.

The same as `rope_write` and `attend` in two launches. A program rotates the queries of one kv head and its
new key, writes key and value to the cache, starts its softmax with them and goes on to the earlier
positions. It never reads back what it wrote, so no write has to be waited for. Rows of one call must
be of different slots. reference.py says what it computes. row_attention.py does it where it can.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from services.backbone.kernels import row_attention
from services.backbone.kernels.attention import TILE_TOKENS, combine_parts


@triton.jit
def _rotation(rope, position, column, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr):
    """(cos, sin) of the pairs, [WIDTH / 2] each."""
    pairs = tl.load(rope + position.to(tl.int64) * HEAD_DIM + column, mask=column < HEAD_DIM, other=0.0)
    return tl.split(tl.reshape(pairs, (WIDTH // 2, 2)))


@triton.jit
def _rotated(values, cos, sin, COUNT: tl.constexpr, WIDTH: tl.constexpr):
    """Rotate interleaved pairs: [COUNT, WIDTH]."""
    even, odd = tl.split(tl.reshape(values.to(tl.float32), (COUNT, WIDTH // 2, 2)))
    cos, sin = cos[None, :], sin[None, :]
    return tl.reshape(tl.join(even * cos - odd * sin, odd * cos + even * sin), (COUNT, WIDTH)).to(values.dtype)


@triton.jit(do_not_specialize=["blocks", "table_width"])
def _step(
    qkv, rope, slots, positions, tables, keys, values, out, highest, total, blocks, table_width, scale,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_TOKENS: tl.constexpr, WIDTH: tl.constexpr,
    TILE: tl.constexpr, GROUP: tl.constexpr, PADDED: tl.constexpr, SPLITS: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    row, kv, split = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    slot, position = tl.load(slots + row), tl.load(positions + row).to(tl.int32)
    part = tl.cdiv(tl.cdiv(position + 1, TILE), SPLITS) * TILE
    start = split * part
    stop = tl.minimum(position + 1, start + part)
    member = tl.arange(0, PADDED)
    column = tl.arange(0, WIDTH)
    head = kv * GROUP + member
    fits = column < HEAD_DIM
    here = (member < GROUP)[:, None] & fits[None, :]
    own = qkv + row * (HEADS + 2 * KV_HEADS) * HEAD_DIM
    cos, sin = _rotation(rope, position, column, HEAD_DIM, WIDTH)
    own_block = tl.load(tables + slot * table_width + position // BLOCK_TOKENS).to(tl.int64)
    if OVERLAP:  # slots, positions and tables were written before the previous kernel, which writes qkv
        gdc_launch_dependents()
        gdc_wait()
    query = tl.load(own + (head * HEAD_DIM)[:, None] + column[None, :], mask=here, other=0.0)
    query = _rotated(query, cos, sin, PADDED, WIDTH)
    new_key = tl.load(own + (HEADS + kv) * HEAD_DIM + column, mask=fits, other=0.0)
    new_key = tl.reshape(_rotated(new_key[None, :], cos, sin, 1, WIDTH), (WIDTH,))
    new_value = tl.load(own + (HEADS + KV_HEADS + kv) * HEAD_DIM + column, mask=fits, other=0.0)
    first = kv.to(tl.int64) * blocks * BLOCK_TOKENS
    is_own = (start <= position) & (position < stop)  # the position is in this part
    own_place = (first + own_block * BLOCK_TOKENS + position % BLOCK_TOKENS) * HEAD_DIM + column
    tl.store(keys + own_place, new_key, mask=(fits & is_own) != 0)
    tl.store(values + own_place, new_value, mask=(fits & is_own) != 0)
    score = tl.sum(query.to(tl.float32) * new_key.to(tl.float32)[None, :], axis=1) * scale
    best = tl.where(is_own, score, float("-inf"))
    weight = tl.where(is_own, tl.full((PADDED,), 1.0, dtype=tl.float32), 0.0)
    sums = tl.where(is_own, tl.zeros((PADDED, WIDTH), dtype=tl.float32) + new_value.to(tl.float32)[None, :], 0.0)
    behind = tl.minimum(stop, position)
    for tile in range(start, behind, TILE):
        at = tile + tl.arange(0, TILE)
        known = at < behind
        block = tl.load(tables + slot * table_width + at // BLOCK_TOKENS, mask=known, other=0).to(tl.int64)
        place = ((first + block * BLOCK_TOKENS + at % BLOCK_TOKENS) * HEAD_DIM)[:, None] + column[None, :]
        key = tl.load(keys + place, mask=known[:, None] & fits[None, :], other=0.0)
        value = tl.load(values + place, mask=known[:, None] & fits[None, :], other=0.0)
        scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        scores = tl.where(known[None, :], scores, float("-inf"))
        new = tl.maximum(best, tl.max(scores, axis=1))
        shares = tl.exp(scores - new[:, None])
        fade = tl.exp(best - new)
        weight = weight * fade + tl.sum(shares, axis=1)
        sums = sums * fade[:, None] + tl.dot(shares.to(value.dtype), value, input_precision="ieee")
        best = new
    if SPLITS == 1:
        sums = sums / weight[:, None]
        tl.store(
            out + (row * HEADS + head)[:, None] * HEAD_DIM + column[None, :], sums.to(out.dtype.element_ty), mask=here
        )
    else:
        to = (row * HEADS + head) * SPLITS + split
        tl.store(highest + to, best, mask=member < GROUP)
        tl.store(total + to, weight, mask=member < GROUP)
        tl.store(out + to[:, None] * HEAD_DIM + column[None, :], sums, mask=here)


def step_attend(
    qkv: Tensor, rope: Tensor, slots: Tensor, positions: Tensor, tables: Tensor, keys: Tensor, values: Tensor,
    heads: int, splits: int = 1, overlap: bool = False,
) -> Tensor:  # fmt: skip
    if splits == 1 and row_attention.can_attend(qkv, keys):
        return row_attention.attend(qkv, rope, slots, positions, tables, keys, values, overlap=overlap)
    count, (kv_heads, blocks, block_tokens, head_dim) = qkv.shape[0], keys.shape
    assert slots.is_contiguous() and positions.is_contiguous() and tables.is_contiguous()
    out = torch.empty(count, heads * head_dim, device=qkv.device, dtype=qkv.dtype)
    sums = highest = total = out
    if splits > 1:
        sums = torch.empty(count, heads, splits, head_dim, device=qkv.device, dtype=torch.float32)
        highest, total = torch.empty(2, count, heads, splits, device=qkv.device, dtype=torch.float32)
    group = heads // kv_heads
    # Of large batches a program is one warp that has many reads under way.
    tile, warps, stages = (32, 1, 6) if splits == 1 and keys.dtype == torch.bfloat16 else (TILE_TOKENS, 4, 3)
    _step[(count, kv_heads, splits)](
        qkv, rope, slots, positions, tables, keys, values, sums, highest, total, blocks, tables.shape[1],
        1 / math.sqrt(head_dim), HEADS=heads, KV_HEADS=kv_heads, HEAD_DIM=head_dim, BLOCK_TOKENS=block_tokens,
        WIDTH=triton.next_power_of_2(head_dim), TILE=tile, GROUP=group,
        PADDED=max(16, triton.next_power_of_2(group)), SPLITS=splits, OVERLAP=overlap,
        num_warps=warps, num_stages=stages, launch_pdl=overlap,
    )  # fmt: skip
    if splits > 1:
        combine_parts(sums, highest, total, out, overlap)
    return out
