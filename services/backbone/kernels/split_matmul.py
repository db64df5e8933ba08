"""Triton kernel of products of up to some hundred rows: tiles loaded by TMA; the inner dimension may be split.

`out` and `down` have few outputs and `down` a long inner dimension. Without a split few tiles are computed, one after the
other; with one all multiprocessors read weights. The norm that follows adds the partial sums up, in fp32 and in order.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
from triton.tools.tensor_descriptor import TensorDescriptor

_PROGRAMS = 128  # of a launch that is split: one a multiprocessor
_MOST_ROWS = 256  # of linear()
_LONG = 4096  # an inner dimension that pays for a split of many rows


# The loop's bounds are constants: where it might run no times, ptxas makes every wgmma wait for the one ahead.
@triton.jit
def _parts(
    x, weight, out, count, outputs,
    STEPS: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, BLOCK: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(count, ROWS)  # programs side by side share their weights
    tile, part = tl.program_id(0), tl.program_id(1)
    row, output = (tile % tiles) * ROWS, (tile // tiles) * OUTPUTS
    first = part * STEPS * BLOCK
    if OVERLAP:  # in this order: launches two ahead would take the shared memory that this one's tiles need
        gdc_wait()
        gdc_launch_dependents()
    sums = tl.zeros((ROWS, OUTPUTS), dtype=tl.float32)
    for step in range(STEPS):
        at = first + step * BLOCK
        sums = tl.dot(x.load([row, at]), weight.load([output, at]).T, sums)
    rows, columns = row + tl.arange(0, ROWS)[:, None], output + tl.arange(0, OUTPUTS)[None, :]
    place = (part * count + rows).to(tl.int64) * outputs + columns
    tl.store(out + place, sums.to(out.dtype.element_ty), mask=(rows < count) & (columns < outputs))


def launch_parts(
    rows: Tensor, weight: Tensor, splits: int, tile: tuple[int, int, int], warps: int, stages: int, dtype: torch.dtype,
    overlap: bool = False,
) -> Tensor:  # fmt: skip
    """Partial sums of rows weightᵀ: [splits, N, D]. tile: rows, outputs, columns."""
    (count, width), outputs = rows.shape, weight.shape[0]
    tile_rows, tile_outputs, block = tile
    out = torch.empty(splits, count, outputs, device=rows.device, dtype=dtype)
    x, w = (
        TensorDescriptor(tensor, list(tensor.shape), list(tensor.stride()), [size, block])
        for tensor, size in ((rows, tile_rows), (weight, tile_outputs))
    )
    _parts[(triton.cdiv(count, tile_rows) * triton.cdiv(outputs, tile_outputs), splits)](
        x, w, out, count, outputs, STEPS=triton.cdiv(triton.cdiv(width, splits), block), ROWS=tile_rows,
        OUTPUTS=tile_outputs, BLOCK=block, OVERLAP=overlap, num_warps=warps, num_stages=stages, launch_pdl=overlap,
    )  # fmt: skip
    return out


def _fits(rows: Tensor) -> bool:
    return rows.dtype == torch.bfloat16 and rows.shape[1] % 128 == 0


def linear(rows: Tensor, weight: Tensor, overlap: bool = False) -> Tensor:
    count = rows.shape[0]
    # The library is faster where launches do not overlap, and its launches let no other begin early.
    if not overlap or count > _MOST_ROWS or not _fits(rows):
        return F.linear(rows, weight)
    tile, stages = ((64, 32, 128), 5) if count <= 64 else ((64, 64, 128), 4)
    return launch_parts(rows, weight, 1, tile, 4, stages, rows.dtype, overlap)[0]


def linear_parts(rows: Tensor, weight: Tensor, overlap: bool = False) -> Tensor:
    """The choice of tiles is by tests/bench/bench_products.py."""
    (count, width), outputs = rows.shape, weight.shape[0]
    tile_rows, tile_outputs, block, stages = 64, 128, 64, 6
    if count <= 64:
        tile_outputs, block, stages = (64, 128, 4) if width >= _LONG else (32, 128, 5)
    elif triton.cdiv(count, 128) * outputs >= _PROGRAMS // 4 * 128:
        tile_rows = 128
    tiles = triton.cdiv(count, tile_rows) * triton.cdiv(outputs, tile_outputs)
    splits = _PROGRAMS // tiles if width >= _LONG else 2 if count <= 64 else 1
    if splits < 2 or not _fits(rows):
        return linear(rows, weight, overlap)
    return launch_parts(
        rows, weight, splits, (tile_rows, tile_outputs, block), tile_rows // 16, stages, torch.float32, overlap
    )
