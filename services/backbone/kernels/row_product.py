"""Products of many rows beside the gated one: compiles wgmma_cuda/rows.cu and launches it.

Twins: reference.linear_add_scaled and reference.linear_scaled.
"""

from __future__ import annotations

import ctypes
import dataclasses
import itertools
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor

from services.backbone.kernels import gated_product, reference
from services.backbone.kernels.nvrtc import Kernel, compile_cuda, tensor_map
from services.backbone.kernels.wgmma import COLUMNS, Ring, has_kernels

_BLOCKS = 132  # that a GPU holds
_MOST_PARTS = 1 << 22  # sums of the parts of a launch


@dataclass(frozen=True)
class Tiling(Ring):
    """What a block computes, and what a cluster's blocks share. rows.cu explains it."""

    groups: int  # of 64 rows
    outputs: int
    splits: int = 1
    row_blocks: int = 1

    @property
    def weights(self) -> int:
        return self.outputs

    def row_tiles(self, count: int) -> int:
        """Of clusters."""
        return -(-count // (self.rows * self.row_blocks))


class _Arguments(ctypes.Structure):
    _fields_ = [
        ("x", ctypes.c_uint64 * 16), ("weight", ctypes.c_uint64 * 16), ("out", ctypes.c_void_p), ("scale", ctypes.c_void_p),
        ("residual", ctypes.c_void_p), ("squares", ctypes.c_void_p), ("parts", ctypes.c_void_p),
        ("count", ctypes.c_int), ("row_tiles", ctypes.c_int), ("eps", ctypes.c_float), ("padding", ctypes.c_uint64 * 6),
    ]  # fmt: skip


@cache
def cubin_of(width: int, outputs: int, tiling: Tiling, adds: bool, squares: int) -> bytes:
    """squares: sums of squares of a row, 0 for rows with their norm's factor. Raises: CompileError."""
    options = tiling.options(
        WIDTH=width, OUTPUTS=outputs, TILE=tiling.outputs, ROW_BLOCKS=tiling.row_blocks, OUTPUT_BLOCKS=1,
        SPLITS=tiling.splits, ADDS=adds, SQUARES=squares,
    )  # fmt: skip
    return compile_cuda(tiling.source("rows.cu"), "row_product", options)


@cache
def _kernel(width: int, outputs: int, tiling: Tiling, adds: bool, squares: int, device: int) -> Kernel:
    """For this shape on the device, which is current. Raises: CompileError."""
    cubin = cubin_of(width, outputs, tiling, adds, squares)
    return Kernel(cubin, "row_product", shared_bytes=tiling.shared_bytes)


def _launch(rows: Tensor, weight: Tensor, tiling: Tiling, adds: bool, a_row: int, **arguments: float | None) -> None:
    (count, width), outputs = rows.shape, weight.shape[0]
    row_tiles = tiling.row_tiles(count)
    kernel = _kernel(width, outputs, tiling, adds, a_row, rows.device.index or 0)
    given = _Arguments(
        x=tensor_map(rows.view(1, count, width), (COLUMNS, tiling.rows, 1)),
        weight=tensor_map(weight.view(1, outputs, width), (COLUMNS, tiling.outputs // tiling.row_blocks, 1)),
        count=count, row_tiles=row_tiles, **arguments,
    )  # fmt: skip
    blocks = row_tiles * tiling.row_blocks * (outputs // tiling.outputs) * tiling.splits
    kernel.launch(blocks, tiling.threads, given, cluster=tiling.row_blocks, overlap=True)


def defers_norms(out: Tensor, down: Tensor) -> bool:
    """As reference.defers_norms."""
    return has_kernels(out.device) and all(
        weight.dtype == torch.bfloat16 and weight.shape[0] % 128 == 0 and weight.shape[1] % 512 == 0
        for weight in (out, down)
    )


def empty_parts(device: torch.device) -> Tensor:
    """As reference.empty_parts: what rows.cu calls NOTHING."""
    return torch.full((_MOST_PARTS,), -1, device=device, dtype=torch.int32)


def adding_tiling_for(count: int, width: int, outputs: int) -> Tiling:
    """Of linear_add_scaled: the fastest for so many rows or near it, by tests/bench/bench_products.py."""
    is_long = width >= 4096  # pays for an exchange of parts
    best, most = Tiling(2, 128), (0.0, 0, 0)
    for groups, tile, splits in itertools.product((1, 2, 3), (64, 128), (1, 2, 4)):
        tiling = Tiling(groups, tile, splits)
        blocks = tiling.row_tiles(count) * (outputs // tile) * splits
        if (groups, tile) == (1, 128) or blocks > _BLOCKS or width // splits < 256:
            continue
        used = count * outputs * splits / (tiling.rows * tile * _BLOCKS)  # of the GPU
        worth = (used if is_long else used / (0.8 + 0.2 * splits), -blocks, tiling.rows * tile * is_long)
        if worth > most:
            best, most = tiling, worth
    pairs = is_long and best.row_tiles(count) % 2 == 0
    return dataclasses.replace(best, row_blocks=2) if pairs else best


def tiling_for(count: int, outputs: int) -> Tiling:
    """Of linear_scaled: the smallest tile whose blocks the GPU holds at once, by tests/bench/bench_products.py."""
    for groups, tile in ((1, 64), (1, 96), (1, 128), (2, 64), (3, 64), (2, 96), (2, 128), (3, 96), (2, 192), (3, 128)):
        tiling = Tiling(groups, tile)
        most = 80 if (groups, tile) == (1, 64) else _BLOCKS
        if outputs % tile == 0 and tiling.row_tiles(count) * (outputs // tile) <= most:
            return tiling
    return Tiling(2, 128) if outputs % 128 == 0 else Tiling(1, 32)


def linear_add_scaled(
    rows: Tensor, weight: Tensor, x: Tensor, scale: Tensor, parts: Tensor, tiling: Tiling | None = None
) -> tuple[Tensor, Tensor]:
    """As reference.linear_add_scaled. Raises: CompileError at the first call for a shape."""
    (count, width), outputs = rows.shape, weight.shape[0]
    assert rows.is_contiguous() and weight.is_contiguous() and x.is_contiguous() and x.dtype == torch.float32
    tiling = tiling or adding_tiling_for(count, width, outputs)
    tiles = tiling.row_tiles(count) * tiling.row_blocks * (outputs // tiling.outputs)
    assert tiling.splits == 1 or tiles * tiling.rows * tiling.outputs * tiling.splits <= len(parts)
    out = torch.empty(count, outputs, device=rows.device, dtype=rows.dtype)
    squares = torch.empty(count, outputs // tiling.outputs, device=rows.device, dtype=torch.float32)
    _launch(
        rows, weight, tiling, True, 0, out=out.data_ptr(), scale=scale.data_ptr(), residual=x.data_ptr(),
        squares=squares.data_ptr(), parts=parts.data_ptr(),
    )  # fmt: skip
    return out, squares


def linear_scaled(
    rows: Tensor, squares: Tensor | None, eps: float, weight: Tensor, tiling: Tiling | None = None
) -> Tensor:
    """As reference.linear_scaled. Raises: CompileError at the first call for a shape."""
    (count, width), outputs = rows.shape, weight.shape[0]
    if not _can_scale(width, outputs):
        return reference.linear_scaled(rows, squares, eps, weight)
    assert rows.is_contiguous() and weight.is_contiguous()
    tiling = tiling or tiling_for(count, outputs)
    out = torch.empty(count, outputs, device=rows.device, dtype=rows.dtype)
    at, a_row = (None, 0) if squares is None else (squares.data_ptr(), squares.shape[1])
    _launch(rows, weight, tiling, False, a_row, out=out.data_ptr(), squares=at, eps=eps)
    return out


def _can_scale(width: int, outputs: int) -> bool:
    return width % COLUMNS == 0 and outputs % 32 == 0


def compile_deferring(
    counts: Iterable[int], qkv: Tensor, out: Tensor, gate_up: Tensor, down: Tensor, heads: Iterable[Tensor]
) -> None:
    """As reference.compile_deferring. Raises: CompileError."""
    work: dict[tuple, Callable[[], bytes]] = {}
    for count in counts:
        adding = {weight: adding_tiling_for(count, *reversed(weight.shape)) for weight in (out, down)}
        for weight, tiling in adding.items():
            key = (weight.shape[1], weight.shape[0], tiling, True, 0)
            work[key] = partial(cubin_of, *key)
        gated = (
            gate_up.shape[1],
            gate_up.shape[0] // 2,
            gated_product.tiling_for(count),
            len(out) // adding[out].outputs,
        )
        work[gated] = partial(gated_product.cubin_of, *gated)
        for weight, squares in ((qkv, 0), *((weight, len(down) // adding[down].outputs) for weight in (qkv, *heads))):
            outputs, width = weight.shape
            key = (width, outputs, tiling_for(count, outputs), False, squares)
            if _can_scale(width, outputs):
                work[key] = partial(cubin_of, *key)
    with ThreadPoolExecutor(min(len(work), os.cpu_count() or 1)) as pool:
        list(pool.map(lambda compiles: compiles(), work.values()))
