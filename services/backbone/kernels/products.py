"""Triton kernels of matrix products with what goes before and after them in the same launch. Twins in plain.py.

At a few rows a product only has to bring its weights in from memory, and every launch costs as much as
a megabyte of them. `_one_row` serves one row without tensor cores; `_few_rows` up to MOST_ROWS,
where the weights are the left side of the tensor cores' product and the rows the right. A weight of few outputs and a long sum is cut into parts: the last part's program to be done adds
all of them, always in the same order, so that results do not depend on who was first.

`_gated` is for many rows: gate and up in one tile, so that what they give is written half as wide once.

x is the fp32 stream of residuals; RMSNorm's root is a factor of each row and is applied after the sum.
So are the factors of the outputs where weights are kept in eight bits.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
from triton.tools.tensor_descriptor import TensorDescriptor

from services.backbone.kernels import MOST_ROWS

PLAIN, GATED, ADDED = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def _one_row(
    x, scale, weight, factors, out, outputs, eps,
    WIDTH: tl.constexpr, NORM: tl.constexpr, KIND: tl.constexpr, FACTORS: tl.constexpr, OUTPUTS: tl.constexpr,
    BLOCK: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    column = tl.arange(0, BLOCK)
    kept = (output < outputs)[:, None]
    place = weight + output.to(tl.int64)[:, None] * WIDTH + column[None, :]
    inside = kept & (column < WIDTH)[None, :]
    # The first weights are on their way before the launch ahead is over: nothing writes weights.
    first = tl.load(place, mask=inside, other=0.0)
    if KIND == GATED:
        place_up = place + outputs.to(tl.int64) * WIDTH
        first_up = tl.load(place_up, mask=inside, other=0.0)
    if OVERLAP:
        gdc_launch_dependents()
        gdc_wait()
    if KIND == ADDED:
        before = tl.load(out + output, mask=output < outputs, other=0.0)
    sums = tl.zeros((OUTPUTS, BLOCK), dtype=tl.float32)
    sums_up = tl.zeros((OUTPUTS, BLOCK), dtype=tl.float32)
    squares = tl.zeros((1, BLOCK), dtype=tl.float32)
    for start in tl.static_range(0, WIDTH, BLOCK):
        at = (start + column)[None, :]
        values = tl.load(x + at, mask=at < WIDTH, other=0.0).to(tl.float32)
        if NORM:
            squares += values * values
            values = values * tl.load(scale + at, mask=at < WIDTH, other=0.0).to(tl.float32)
        inside = kept & (at < WIDTH)
        weights = first if start == 0 else tl.load(place + start, mask=inside, other=0.0)
        sums += weights.to(tl.float32) * values
        if KIND == GATED:
            weights = first_up if start == 0 else tl.load(place_up + start, mask=inside, other=0.0)
            sums_up += weights.to(tl.float32) * values
    total = tl.sum(sums, axis=1)
    up = tl.sum(sums_up, axis=1)
    if FACTORS:
        total *= tl.load(factors + output, mask=output < outputs, other=0.0)
        if KIND == GATED:
            up *= tl.load(factors + outputs + output, mask=output < outputs, other=0.0)
    if NORM:
        inverse = tl.rsqrt(tl.sum(squares) / WIDTH + eps)
        total, up = total * inverse, up * inverse
    if KIND == GATED:
        total = total / (1.0 + tl.exp(-total)) * up
    if KIND == ADDED:
        total += before
    tl.store(out + output, total.to(out.dtype.element_ty), mask=output < outputs)


@triton.jit
def _few_rows(
    x, scale, weight, factors, out, sums, turns, count, outputs, eps,
    WIDTH: tl.constexpr, NORM: tl.constexpr, KIND: tl.constexpr, FACTORS: tl.constexpr, OUTPUTS: tl.constexpr,
    BLOCK: tl.constexpr, ROWS: tl.constexpr, PARTS: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    if OVERLAP:
        gdc_launch_dependents()
        gdc_wait()
    tile, part = tl.program_id(0), tl.program_id(1)
    output = tile * OUTPUTS + tl.arange(0, OUTPUTS)
    column = tl.arange(0, BLOCK)
    row = tl.arange(0, ROWS)
    kept = (output < outputs)[:, None]
    place = weight + output.to(tl.int64)[:, None] * WIDTH
    up_rows = outputs.to(tl.int64) * WIDTH
    total = tl.zeros((OUTPUTS, ROWS), dtype=tl.float32)
    up = tl.zeros((OUTPUTS, ROWS), dtype=tl.float32)
    squares = tl.zeros((ROWS,), dtype=tl.float32)
    length: tl.constexpr = (WIDTH + PARTS * BLOCK - 1) // (PARTS * BLOCK) * BLOCK
    for start in range(part * length, tl.minimum(WIDTH, (part + 1) * length), BLOCK):
        at = start + column
        values = tl.load(x + row[None, :] * WIDTH + at[:, None], mask=(row < count)[None, :] & (at < WIDTH)[:, None], other=0.0)
        if NORM:
            values = values.to(tl.float32)
            squares += tl.sum(values * values, axis=0)
            values = values * tl.load(scale + at, mask=at < WIDTH, other=0.0).to(tl.float32)[:, None]
            values = values.to(scale.dtype.element_ty)
        inside = kept & (at < WIDTH)[None, :]
        weights = tl.load(place + at[None, :], mask=inside, other=0.0).to(values.dtype)
        total = tl.dot(weights, values, total, input_precision="ieee")
        if KIND == GATED:
            weights = tl.load(place + up_rows + at[None, :], mask=inside, other=0.0).to(values.dtype)
            up = tl.dot(weights, values, up, input_precision="ieee")
    if FACTORS:
        total *= tl.load(factors + output, mask=output < outputs, other=0.0)[:, None]
        if KIND == GATED:
            up *= tl.load(factors + outputs + output, mask=output < outputs, other=0.0)[:, None]
    if NORM:
        inverse = tl.rsqrt(squares / WIDTH + eps)[None, :]
        total, up = total * inverse, up * inverse
    if KIND == GATED:
        total = total / (1.0 + tl.exp(-total)) * up
    to = row[None, :] * outputs + output[:, None]
    inside = kept & (row < count)[None, :]
    is_last = True
    if PARTS > 1:
        own = sums + (tile * PARTS + part) * (OUTPUTS * ROWS)
        within = tl.arange(0, OUTPUTS)[:, None] * ROWS + row[None, :]
        tl.store(own + within, total)
        tl.debug_barrier()  # all of this program's stores, before one thread says that they are done
        is_last = tl.atomic_add(turns + tile, 1, sem="acq_rel", scope="gpu") == PARTS - 1
    if is_last:
        if PARTS > 1:
            tl.debug_barrier()
            total = tl.zeros((OUTPUTS, ROWS), dtype=tl.float32)
            for other in range(PARTS):
                at_part = sums + (tile * PARTS + other) * (OUTPUTS * ROWS)
                total += tl.load(at_part + within, cache_modifier=".cg")
            tl.store(turns + tile, 0)  # for the next launch
        if KIND == ADDED:
            total += tl.load(out + to, mask=inside, other=0.0)
        tl.store(out + to, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _gated(
    x, weight, out, count, outputs,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(count, ROWS)  # programs side by side share their weights
    row = (tl.program_id(0) % tiles) * ROWS + tl.arange(0, ROWS)
    output = (tl.program_id(0) // tiles) * OUTPUTS + tl.arange(0, OUTPUTS)
    column = tl.arange(0, BLOCK)
    here, kept = (row < count)[:, None], (output < outputs)[None, :]
    place_x = x + row.to(tl.int64)[:, None] * WIDTH + column[None, :]
    place = weight + output.to(tl.int64)[None, :] * WIDTH + column[:, None]
    place_up = place + outputs.to(tl.int64) * WIDTH
    gate = tl.zeros((ROWS, OUTPUTS), dtype=tl.float32)
    up = tl.zeros((ROWS, OUTPUTS), dtype=tl.float32)
    for start in range(0, WIDTH, BLOCK):
        fits = start + column < WIDTH
        values = tl.load(place_x + start, mask=here & fits[None, :], other=0.0)
        weights = tl.load(place + start, mask=kept & fits[:, None], other=0.0)
        weights_up = tl.load(place_up + start, mask=kept & fits[:, None], other=0.0)
        gate = tl.dot(values, weights, gate, input_precision="ieee")
        up = tl.dot(values, weights_up, up, input_precision="ieee")
    gated = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out + row.to(tl.int64)[:, None] * outputs + output[None, :], gated.to(out.dtype.element_ty), mask=here & kept)


@triton.jit
def _gated_tiles(x, weight, out, count, outputs, WIDTH: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, BLOCK: tl.constexpr):
    """_gated where the memory engine brings whole tiles. What lies outside is read as zeros, and not written."""
    tiles = tl.cdiv(count, ROWS)
    row, output = (tl.program_id(0) % tiles) * ROWS, (tl.program_id(0) // tiles) * OUTPUTS
    gate = tl.zeros((ROWS, OUTPUTS), dtype=tl.float32)
    up = tl.zeros((ROWS, OUTPUTS), dtype=tl.float32)
    for start in range(0, WIDTH, BLOCK):
        values = x.load([row, start])
        gate = tl.dot(values, weight.load([output, start]).T, gate)
        up = tl.dot(values, weight.load([outputs + output, start]).T, up)
    gated = gate / (1.0 + tl.exp(-gate)) * up
    out.store([row, output], gated.to(tl.bfloat16))


def linear_gated(rows: Tensor, gate_up: Tensor) -> Tensor:
    count, width = rows.shape
    outputs = gate_up.shape[0] // 2
    out = torch.empty(count, outputs, device=rows.device, dtype=rows.dtype)
    if count > 128 and rows.dtype == torch.bfloat16 and width % 8 == outputs % 8 == 0:  # tiles begin at 16 bytes
        tile, block = 128, 64
        described = [
            TensorDescriptor(tensor, list(tensor.shape), list(tensor.stride()), [tile, columns])
            for tensor, columns in ((rows, block), (gate_up, block), (out, tile))
        ]
        _gated_tiles[(triton.cdiv(count, tile) * triton.cdiv(outputs, tile),)](
            *described, count, outputs, WIDTH=width, ROWS=tile, OUTPUTS=tile, BLOCK=block, num_warps=8, num_stages=4
        )
        return out
    tile, fits = 64 if count <= 64 else 128, rows.dtype == torch.bfloat16  # fp32, for tests of exactness, takes smaller tiles
    tile_outputs, block = (128 if count > 64 else 64, 64) if fits else (64, 32)
    grid = (triton.cdiv(count, tile) * triton.cdiv(outputs, tile_outputs),)
    _gated[grid](
        rows, gate_up, out, count, outputs, WIDTH=width, ROWS=tile, OUTPUTS=tile_outputs, BLOCK=block,
        num_warps=8 if tile == 128 else 4, num_stages=4 if fits else 2,
    )  # fmt: skip
    return out


def norm_linear(
    x: Tensor, scale: Tensor, eps: float, weight: Tensor, factors: Tensor | None = None, overlap: bool = False
) -> Tensor:
    out = torch.empty(x.shape[0], weight.shape[0], device=x.device, dtype=scale.dtype)
    _product(x, scale, eps, weight, factors, out, PLAIN, overlap)
    return out


def norm_gated(
    x: Tensor, scale: Tensor, eps: float, gate_up: Tensor, factors: Tensor | None = None, overlap: bool = False
) -> Tensor:
    out = torch.empty(x.shape[0], gate_up.shape[0] // 2, device=x.device, dtype=scale.dtype)
    _product(x, scale, eps, gate_up, factors, out, GATED, overlap)
    return out


def linear_add(
    rows: Tensor, weight: Tensor, factors: Tensor | None, x: Tensor, overlap: bool = False
) -> None:
    _product(rows, None, 0.0, weight, factors, x, ADDED, overlap)


def _product(
    x: Tensor, scale: Tensor | None, eps: float, weight: Tensor, factors: Tensor | None, out: Tensor,
    kind: tl.constexpr, overlap: bool,
) -> None:  # fmt: skip
    (count, width), outputs = x.shape, out.shape[1]
    assert count <= MOST_ROWS and x.is_contiguous() and weight.is_contiguous() and out.is_contiguous()
    options = {
        "WIDTH": width, "NORM": scale is not None, "KIND": kind, "FACTORS": factors is not None, "OVERLAP": overlap,
        "launch_pdl": overlap,
    }  # fmt: skip
    scale, factors = (x if tensor is None else tensor for tensor in (scale, factors))
    if count == 1:
        # A program has 8 to 32 KB of weights, and the whole grid fills the chip's 132 multiprocessors evenly.
        tile, block = (2, 4096) if width > 4096 else (4, triton.next_power_of_2(width))
        elements = tile * block * (2 if kind is GATED else 1)
        _one_row[(triton.cdiv(outputs, tile),)](
            x, scale, weight, factors, out, outputs, eps, OUTPUTS=tile, BLOCK=block,
            num_warps=min(8, max(4, elements // 1024)), **options,
        )  # fmt: skip
        return
    tile, parts, padded = 16, 1, 16 if count <= 16 else MOST_ROWS
    if kind is GATED or width > 4096:
        tile = 32
    block = min(256 if x.dtype == torch.bfloat16 else 128, max(16, triton.next_power_of_2(width)))
    tiles = triton.cdiv(outputs, tile)
    if kind is ADDED:  # as many programs as multiprocessors, each with a good run of columns
        while tiles * parts * 2 <= 132 and width >= parts * 2 * 512:
            parts *= 2
    sums = out
    if parts > 1:
        sums = torch.empty(tiles * parts * tile * padded, device=x.device, dtype=torch.float32)
    _few_rows[(tiles, parts)](
        x, scale, weight, factors, out, sums, _turns(x.device), count, outputs, eps, OUTPUTS=tile, BLOCK=block,
        ROWS=padded, PARTS=parts, num_warps=4, num_stages=4, **options,
    )  # fmt: skip


@functools.cache
def _turns(device: torch.device) -> Tensor:
    """How many parts of each tile are done. Zeros between launches, which all are in one stream."""
    return torch.zeros(4096, device=device, dtype=torch.int32)
