"""Triton kernels of attention over paged keys and values. reference.py says what they compute.

One program of `_attend` holds all query heads that share a kv head, so that keys and values are read
once. At small batches the context is split into `splits` parts, each a program with its own softmax,
and `_combine` merges them (flash decoding).
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from services.backbone.blocks import BLOCK_TOKENS

TILE_TOKENS = 64
_HEADS_A_PROGRAM = 8


# Not specialised: one compiled variant serves every size.
@triton.jit(do_not_specialize=["blocks", "table_width"])
def _rope_write(
    qkv, rope, slots, positions, tables, keys, values, out, blocks, table_width,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_TOKENS: tl.constexpr, WIDTH: tl.constexpr,
    PART: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * PART + tl.arange(0, PART)[:, None]
    column = tl.arange(0, WIDTH)[None, :]
    inside = (head < HEADS + 2 * KV_HEADS) & (column < HEAD_DIM)
    start = qkv + row * (HEADS + 2 * KV_HEADS) * HEAD_DIM + head * HEAD_DIM
    own = tl.load(start + column, mask=inside, other=0.0)
    partner = tl.load(start + (column ^ 1), mask=inside, other=0.0)
    slot, position = tl.load(slots + row), tl.load(positions + row)
    pair = rope + position * HEAD_DIM + (column & -2)
    cos, sin = tl.load(pair, mask=column < HEAD_DIM), tl.load(pair + 1, mask=column < HEAD_DIM)
    # (a + ib)(cos + i sin): the even column is a cos - b sin, the odd one b cos + a sin
    sign = tl.where((column & 1) != 0, 1.0, -1.0)
    rotated = (own.to(tl.float32) * cos + sign * partner.to(tl.float32) * sin).to(own.dtype)
    block = tl.load(tables + slot * table_width + position // BLOCK_TOKENS).to(tl.int64)
    place = (block * BLOCK_TOKENS + position % BLOCK_TOKENS) * HEAD_DIM + column
    head_size = blocks.to(tl.int64) * BLOCK_TOKENS * HEAD_DIM
    is_key = (head >= HEADS) & (head < HEADS + KV_HEADS) & inside
    is_value = (head >= HEADS + KV_HEADS) & inside
    tl.store(out + row * HEADS * HEAD_DIM + head * HEAD_DIM + column, rotated, mask=inside & (head < HEADS))
    tl.store(keys + (head - HEADS) * head_size + place, rotated, mask=is_key)
    tl.store(values + (head - HEADS - KV_HEADS) * head_size + place, own, mask=is_value)


def rope_write(
    qkv: Tensor,
    rope: Tensor,
    slots: Tensor,
    positions: Tensor,
    tables: Tensor,
    keys: Tensor,
    values: Tensor,
    heads: int,
) -> Tensor:
    kv_heads, blocks, block_tokens, head_dim = keys.shape
    assert slots.is_contiguous() and positions.is_contiguous() and tables.is_contiguous()
    out = torch.empty(qkv.shape[0], heads, head_dim, device=qkv.device, dtype=qkv.dtype)
    _rope_write[(qkv.shape[0], triton.cdiv(heads + 2 * kv_heads, _HEADS_A_PROGRAM))](
        qkv, rope, slots, positions, tables, keys, values, out, blocks, tables.shape[1],
        HEADS=heads, KV_HEADS=kv_heads, HEAD_DIM=head_dim, BLOCK_TOKENS=block_tokens, WIDTH=triton.next_power_of_2(head_dim),
        PART=_HEADS_A_PROGRAM, num_warps=4,
    )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["blocks", "table_width"])
def _attend(
    q, slots, positions, tables, keys, values, out, highest, total, blocks, table_width, scale,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_TOKENS: tl.constexpr,
    WIDTH: tl.constexpr, TILE: tl.constexpr, GROUP: tl.constexpr, PADDED: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    row, kv, split = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    slot, length = tl.load(slots + row), tl.load(positions + row).to(tl.int32) + 1
    part = tl.cdiv(tl.cdiv(length, TILE), SPLITS) * TILE
    start = split * part
    stop = tl.minimum(length, start + part)
    member = tl.arange(0, PADDED)
    column = tl.arange(0, WIDTH)
    fits = (column < HEAD_DIM)[None, :]
    head = kv * GROUP + member
    here = (member < GROUP)[:, None] & fits
    query = tl.load(q + (row * HEADS + head)[:, None] * HEAD_DIM + column[None, :], mask=here, other=0.0)
    best = tl.full((PADDED,), float("-inf"), dtype=tl.float32)
    weight = tl.zeros((PADDED,), dtype=tl.float32)
    sums = tl.zeros((PADDED, WIDTH), dtype=tl.float32)
    first = kv.to(tl.int64) * blocks * BLOCK_TOKENS
    for tile in range(start, stop, TILE):
        at = tile + tl.arange(0, TILE)
        known = at < stop
        block = tl.load(tables + slot * table_width + at // BLOCK_TOKENS, mask=known, other=0).to(tl.int64)
        place = ((first + block * BLOCK_TOKENS + at % BLOCK_TOKENS) * HEAD_DIM)[:, None] + column[None, :]
        key = tl.load(keys + place, mask=known[:, None] & fits, other=0.0)
        value = tl.load(values + place, mask=known[:, None] & fits, other=0.0)
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


@triton.jit
def _combine(
    sums, highest, total, out,
    SPLITS: tl.constexpr, PADDED: tl.constexpr, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    if OVERLAP:
        gdc_launch_dependents()
        gdc_wait()
    at = tl.program_id(0).to(tl.int64)  # row * HEADS + head
    split = tl.arange(0, PADDED)
    column = tl.arange(0, WIDTH)
    fits = column < HEAD_DIM
    inside = split < SPLITS
    best = tl.load(highest + at * SPLITS + split, mask=inside, other=float("-inf"))
    fade = tl.exp(best - tl.max(best, axis=0))  # an empty part has -inf here, and 0 below
    weight = tl.sum(fade * tl.load(total + at * SPLITS + split, mask=inside, other=0.0), axis=0)
    place = (at * SPLITS + split)[:, None] * HEAD_DIM + column[None, :]
    parts = tl.load(sums + place, mask=inside[:, None] & fits[None, :], other=0.0)
    result = tl.sum(parts * fade[:, None], axis=0) / weight
    tl.store(out + at * HEAD_DIM + column, result.to(out.dtype.element_ty), mask=fits)


def attend(
    q: Tensor, slots: Tensor, positions: Tensor, tables: Tensor, keys: Tensor, values: Tensor, splits: int = 1
) -> Tensor:
    count, heads, head_dim = q.shape
    kv_heads, blocks, block_tokens, _ = keys.shape
    assert (
        block_tokens == BLOCK_TOKENS and slots.is_contiguous() and positions.is_contiguous() and tables.is_contiguous()
    )
    out = torch.empty(count, heads * head_dim, device=q.device, dtype=q.dtype)
    if splits == 1:
        sums = highest = total = out
    else:
        sums = torch.empty(count, heads, splits, head_dim, device=q.device, dtype=torch.float32)
        highest, total = torch.empty(2, count, heads, splits, device=q.device, dtype=torch.float32)
    group = heads // kv_heads
    _attend[(count, kv_heads, splits)](
        q, slots, positions, tables, keys, values, sums, highest, total, blocks, tables.shape[1], 1 / math.sqrt(head_dim),
        HEADS=heads, KV_HEADS=kv_heads, HEAD_DIM=head_dim, BLOCK_TOKENS=block_tokens,
        WIDTH=triton.next_power_of_2(head_dim), TILE=TILE_TOKENS, GROUP=group,
        PADDED=max(16, triton.next_power_of_2(group)), SPLITS=splits, num_warps=4,
    )  # fmt: skip
    if splits > 1:
        combine_parts(sums, highest, total, out)
    return out


def combine_parts(sums: Tensor, highest: Tensor, total: Tensor, out: Tensor, overlap: bool = False) -> None:
    """Merge the results of the parts of a context. sums: [N, H, splits, hd]; highest, total: [N, H, splits]."""
    count, heads, splits, head_dim = sums.shape
    _combine[(count * heads,)](
        sums, highest, total, out, SPLITS=splits, PADDED=triton.next_power_of_2(splits), HEAD_DIM=head_dim,
        WIDTH=triton.next_power_of_2(head_dim), OVERLAP=overlap, num_warps=1, launch_pdl=overlap,
    )  # fmt: skip
