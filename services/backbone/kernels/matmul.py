"""Triton kernels of matrix products fused with what comes before and after. reference.py says what they compute.

A product of one row is bound by reading its weights, and a launch costs as much as reading a megabyte:
`_one_row` fuses norm, activation and residual. x is the fp32 residual stream. RMSNorm's root is one factor
for the row, applied after the sum.

`_gated` is for many rows: gate and up in one tile, so that only their product is written. On Hopper GPUs gated_product.py
does that for bf16.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
from triton.tools.tensor_descriptor import TensorDescriptor

from services.backbone.kernels import gated_product

PLAIN, GATED, ADDED = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def _one_row(
    x, scale, weight, out, outputs, eps,
    WIDTH: tl.constexpr, NORM: tl.constexpr, KIND: tl.constexpr, OUTPUTS: tl.constexpr,
    BLOCK: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    column = tl.arange(0, BLOCK)
    kept = (output < outputs)[:, None]
    place = weight + output.to(tl.int64)[:, None] * WIDTH + column[None, :]
    inside = kept & (column < WIDTH)[None, :]
    # Prefetch the first weights before the previous kernel is over: nothing writes weights.
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
    if NORM:
        inverse = tl.rsqrt(tl.sum(squares) / WIDTH + eps)
        total, up = total * inverse, up * inverse
    if KIND == GATED:
        total = total / (1.0 + tl.exp(-total)) * up
    if KIND == ADDED:
        total += before
    tl.store(out + output, total.to(out.dtype.element_ty), mask=output < outputs)


@triton.jit
def _gated(
    x, weight, out, count, outputs,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, BLOCK: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()
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
    tl.store(
        out + row.to(tl.int64)[:, None] * outputs + output[None, :], gated.to(out.dtype.element_ty), mask=here & kept
    )


@triton.jit
def _gated_tiles(
    x, weight, out, count, outputs,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, BLOCK: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """_gated with tiles loaded by TMA. Out of bounds reads are zeros, writes are dropped."""
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()
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


def linear_gated(
    rows: Tensor, gate_up: Tensor, overlap: bool = False, squares: Tensor | None = None, eps: float = 0.0
) -> Tensor:
    if squares is not None or gated_product.supports(rows, gate_up):
        return gated_product.linear_gated(rows, gate_up, None, squares, eps)
    return triton_linear_gated(rows, gate_up, overlap)


def triton_linear_gated(rows: Tensor, gate_up: Tensor, overlap: bool = False) -> Tensor:
    count, width = rows.shape
    outputs = gate_up.shape[0] // 2
    out = torch.empty(count, outputs, device=rows.device, dtype=rows.dtype)
    if count > 128 and rows.dtype == torch.bfloat16 and width % 8 == outputs % 8 == 0:  # TMA wants 16-byte strides
        tile, block = 128, 64
        described = [
            TensorDescriptor(tensor, list(tensor.shape), list(tensor.stride()), [tile, columns])
            for tensor, columns in ((rows, block), (gate_up, block), (out, tile))
        ]
        _gated_tiles[(triton.cdiv(count, tile) * triton.cdiv(outputs, tile),)](
            *described, count, outputs, WIDTH=width, ROWS=tile, OUTPUTS=tile, BLOCK=block,
            OVERLAP=overlap, num_warps=8, num_stages=4, launch_pdl=overlap,
        )  # fmt: skip
        return out
    tile, fits = (
        64 if count <= 64 else 128,
        rows.dtype == torch.bfloat16,
    )  # fp32, for tests of exactness, takes smaller tiles
    tile_outputs, block = (128 if count > 64 else 64, 64) if fits else (64, 32)
    grid = (triton.cdiv(count, tile) * triton.cdiv(outputs, tile_outputs),)
    _gated[grid](
        rows, gate_up, out, count, outputs, WIDTH=width, ROWS=tile, OUTPUTS=tile_outputs, BLOCK=block,
        OVERLAP=overlap, num_warps=8 if tile == 128 else 4, num_stages=4 if fits else 2, launch_pdl=overlap,
    )  # fmt: skip
    return out


def norm_linear(x: Tensor, scale: Tensor, eps: float, weight: Tensor, overlap: bool = False) -> Tensor:
    out = torch.empty(x.shape[0], weight.shape[0], device=x.device, dtype=scale.dtype)
    _product(x, scale, eps, weight, out, PLAIN, overlap)
    return out


def norm_gated(x: Tensor, scale: Tensor, eps: float, gate_up: Tensor, overlap: bool = False) -> Tensor:
    out = torch.empty(x.shape[0], gate_up.shape[0] // 2, device=x.device, dtype=scale.dtype)
    _product(x, scale, eps, gate_up, out, GATED, overlap)
    return out


def linear_add(rows: Tensor, weight: Tensor, x: Tensor, overlap: bool = False) -> None:
    _product(rows, None, 0.0, weight, x, ADDED, overlap)


def _product(
    x: Tensor, scale: Tensor | None, eps: float, weight: Tensor, out: Tensor, kind: tl.constexpr, overlap: bool
) -> None:
    width, outputs = x.shape[1], out.shape[1]
    assert len(x) == 1 and x.is_contiguous() and weight.is_contiguous() and out.is_contiguous()
    # A program reads 8 to 32 KB of weights, and the grid fills the chip's 132 multiprocessors evenly.
    tile, block = (2, 4096) if width > 4096 else (4, triton.next_power_of_2(width))
    is_wide = 1024 < width <= 4096  # of the backbone: fewer warps with more to read are faster there
    if is_wide and kind is GATED:
        tile = 2
    elements = tile * block * (2 if kind is GATED else 1)
    warps = min(8, max(4, elements // (2048 if is_wide else 1024)))
    _one_row[(triton.cdiv(outputs, tile),)](
        x, x if scale is None else scale, weight, out, outputs, eps,
        WIDTH=width, NORM=scale is not None, KIND=kind, OUTPUTS=tile, BLOCK=block,
        OVERLAP=overlap, num_warps=warps, launch_pdl=overlap,
    )  # fmt: skip
