"""The MLP's first product with its activation, for many rows: compiles wgmma_cuda/gated.cu and launches it.

Twin: reference.linear_gated.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from services.backbone.kernels.nvrtc import Kernel, compile_cuda, tensor_map
from services.backbone.kernels.wgmma import COLUMNS, Ring, has_kernels


@dataclass(frozen=True)
class Tiling(Ring):
    """What a block computes, and what a cluster's blocks share. wgmma_cuda/ring.cu explains it."""

    groups: int  # of 64 rows
    outputs: int
    row_blocks: int = 1
    output_blocks: int = 1

    @property
    def weights(self) -> int:
        return 2 * self.outputs

    @property
    def cluster(self) -> int:
        return self.row_blocks * self.output_blocks


def tiling_for(count: int) -> Tiling:
    """The fastest for so many rows, by tests/bench/bench_products.py."""
    if count <= 128:
        return Tiling(groups=1 if count <= 64 else 2, outputs=64)
    if count <= 192 or 256 < count <= 384:
        return Tiling(groups=3, outputs=64, row_blocks=1 if count <= 192 else 2)
    # Sharing weights pays where launches overlap, as they do up to 512 rows.
    return Tiling(groups=2, outputs=128, row_blocks=2 if count in (256, 512) else 1)


def supports(rows: Tensor, gate_up: Tensor) -> bool:
    """Whether the kernel can multiply these on their device."""
    width, outputs = rows.shape[1], gate_up.shape[0] // 2
    return (
        rows.dtype == gate_up.dtype == torch.bfloat16
        and width % COLUMNS == 0
        and width > COLUMNS
        and outputs % 256 == 0
        and rows.is_contiguous()
        and gate_up.is_contiguous()
        and has_kernels(rows.device)
    )


class _Arguments(ctypes.Structure):
    _fields_ = [
        ("x", ctypes.c_uint64 * 16), ("weight", ctypes.c_uint64 * 16), ("out", ctypes.c_void_p),
        ("squares", ctypes.c_void_p), ("count", ctypes.c_int), ("row_tiles", ctypes.c_int), ("eps", ctypes.c_float),
        ("padding", ctypes.c_uint64 * 4),
    ]  # fmt: skip


@cache
def cubin_of(width: int, outputs: int, tiling: Tiling, squares: int) -> bytes:
    """squares: sums of squares of a row, 0 for rows with their norm's factor. Raises: CompileError."""
    options = tiling.options(
        WIDTH=width, OUTPUTS=outputs, TILE=tiling.outputs, ROW_BLOCKS=tiling.row_blocks, OUTPUT_BLOCKS=tiling.output_blocks,
        SQUARES=squares,
    )  # fmt: skip
    return compile_cuda(tiling.source("gated.cu"), "gated_product", options)


@cache
def _kernel(width: int, outputs: int, tiling: Tiling, squares: int, device: int) -> tuple[Kernel, int]:
    """(for this shape on the device, which is current; how many clusters the device holds). Raises: CompileError."""
    cubin = cubin_of(width, outputs, tiling, squares)
    kernel = Kernel(cubin, "gated_product", shared_bytes=tiling.shared_bytes)
    return kernel, kernel.resident_clusters(tiling.threads, tiling.cluster)


def linear_gated(
    rows: Tensor, gate_up: Tensor, tiling: Tiling | None = None, squares: Tensor | None = None, eps: float = 0.0
) -> Tensor:
    """As reference.linear_gated. Raises: CompileError at the first call for a shape."""
    (count, width), outputs = rows.shape, gate_up.shape[0] // 2
    assert rows.is_contiguous() and gate_up.is_contiguous() and rows.dtype == gate_up.dtype == torch.bfloat16
    tiling = tiling or tiling_for(count)
    device, a_row = rows.device.index or 0, 0 if squares is None else squares.shape[1]
    kernel, resident = _kernel(width, outputs, tiling, a_row, device)
    out = torch.empty(count, outputs, device=rows.device, dtype=rows.dtype)
    part = 2 * tiling.outputs // tiling.row_blocks  # of the weights that a block loads
    box = (COLUMNS, min(part, tiling.outputs), max(1, part // tiling.outputs))
    row_tiles = -(-count // (tiling.rows * tiling.row_blocks))
    clusters = min(resident, row_tiles * (outputs // (tiling.outputs * tiling.output_blocks)))
    arguments = _Arguments(
        x=tensor_map(rows.view(1, count, width), (COLUMNS, tiling.rows // tiling.output_blocks, 1)),
        weight=tensor_map(gate_up.view(2, outputs, width), box), out=out.data_ptr(), count=count, row_tiles=row_tiles,
        squares=None if squares is None else squares.data_ptr(), eps=eps,
    )  # fmt: skip
    kernel.launch(clusters * tiling.cluster, tiling.threads, arguments, cluster=tiling.cluster, overlap=True)
    return out
