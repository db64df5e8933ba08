"""The MLP's first product with its activation, for many rows: compiles gated_cuda/ and launches it.

Only bf16 and GPUs of compute capability 9.0: tiles come by TMA, and wgmma multiplies them. Twin: reference.linear_gated.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from services.backbone.kernels.nvrtc import (
    HOPPER_SHARED_BYTES,
    Kernel,
    compile_cuda,
    compiles_for,
    options_for,
    tensor_map,
)

ARCHITECTURE = "sm_90a"
_COLUMNS = 64  # of a stage


@dataclass(frozen=True)
class Tiling:
    """What a block computes, and what a cluster's blocks share. product.cu explains it."""

    groups: int  # of 64 rows
    outputs: int
    row_blocks: int = 1
    output_blocks: int = 1

    @property
    def rows(self) -> int:
        return 64 * self.groups

    @property
    def threads(self) -> int:
        return 128 * self.groups + 128

    @property
    def cluster(self) -> int:
        return self.row_blocks * self.output_blocks

    @property
    def stage_bytes(self) -> int:
        return (self.rows + 2 * self.outputs) * _COLUMNS * 2

    @property
    def stages(self) -> int:
        return HOPPER_SHARED_BYTES // (self.stage_bytes + 16)

    @property
    def shared_bytes(self) -> int:
        return self.stages * (self.stage_bytes + 16)


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
        and width % _COLUMNS == 0
        and width > _COLUMNS
        and outputs % 256 == 0
        and rows.is_contiguous()
        and gate_up.is_contiguous()
        and _has_kernels(rows.device)
    )


@cache
def _has_kernels(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) == (9, 0) and compiles_for(ARCHITECTURE)


class _Arguments(ctypes.Structure):
    _fields_ = [
        ("x", ctypes.c_uint64 * 16), ("weight", ctypes.c_uint64 * 16), ("out", ctypes.c_void_p), ("count", ctypes.c_int),
        ("row_tiles", ctypes.c_int), ("padding", ctypes.c_uint64 * 6),
    ]  # fmt: skip


def multiply_source(weights: int) -> str:
    """C++ of the wgmma instruction for so many rows of weights."""
    sums = weights // 2
    registers = ", ".join(f"%{index}" for index in range(sums))
    outputs = ", ".join(f'"+f"(d[{index}])' for index in range(sums))
    return f"""
__device__ __forceinline__ void multiply(float (&d)[{sums}], u64 a, u64 b, int adds) {{
    asm volatile("{{\\n.reg .pred p;\\nsetp.ne.b32 p, %{sums + 2}, 0;\\n"
                 "wgmma.mma_async.sync.aligned.m64n{weights}k16.f32.bf16.bf16 {{{registers}}}, %{sums}, %{sums + 1}, "
                 "p, 1, 1, 0, 0;\\n}}" : {outputs} : "l"(a), "l"(b), "r"(adds));
}}
"""


def ptx_source(tiling: Tiling) -> str:
    return (Path(__file__).with_name("gated_cuda") / "ptx.cu").read_text() + multiply_source(2 * tiling.outputs)


def source(tiling: Tiling) -> str:
    """CUDA C++."""
    return "\n".join([ptx_source(tiling), (Path(__file__).with_name("gated_cuda") / "product.cu").read_text()])


def compiler_options(width: int, outputs: int, tiling: Tiling) -> list[str]:
    values = {
        "WIDTH": width, "OUTPUTS": outputs, "GROUPS": tiling.groups, "TILE": tiling.outputs, "STAGES": tiling.stages,
        "SHARED": tiling.shared_bytes, "ROW_BLOCKS": tiling.row_blocks, "OUTPUT_BLOCKS": tiling.output_blocks,
    }  # fmt: skip
    return options_for(ARCHITECTURE, values)


@cache
def _kernel(width: int, outputs: int, tiling: Tiling, device: int) -> tuple[Kernel, int]:
    """(for this shape on the device, which is current; how many clusters the device holds). Raises: CompileError."""
    cubin = compile_cuda(source(tiling), "gated_cuda", compiler_options(width, outputs, tiling))
    kernel = Kernel(cubin, "gated_product", shared_bytes=tiling.shared_bytes)
    return kernel, kernel.resident_clusters(tiling.threads, tiling.cluster)


def linear_gated(rows: Tensor, gate_up: Tensor, tiling: Tiling | None = None) -> Tensor:
    """As reference.linear_gated. Raises: CompileError at the first call for a shape."""
    (count, width), outputs = rows.shape, gate_up.shape[0] // 2
    assert rows.is_contiguous() and gate_up.is_contiguous() and rows.dtype == gate_up.dtype == torch.bfloat16
    tiling = tiling or tiling_for(count)
    kernel, resident = _kernel(width, outputs, tiling, rows.device.index or 0)
    out = torch.empty(count, outputs, device=rows.device, dtype=rows.dtype)
    part = 2 * tiling.outputs // tiling.row_blocks  # of the weights that a block loads
    box = (_COLUMNS, min(part, tiling.outputs), max(1, part // tiling.outputs))
    row_tiles = -(-count // (tiling.rows * tiling.row_blocks))
    clusters = min(resident, row_tiles * (outputs // (tiling.outputs * tiling.output_blocks)))
    arguments = _Arguments(
        x=tensor_map(rows.view(1, count, width), (_COLUMNS, tiling.rows // tiling.output_blocks, 1)),
        weight=tensor_map(gate_up.view(2, outputs, width), box), out=out.data_ptr(), count=count, row_tiles=row_tiles,
    )  # fmt: skip
    kernel.launch(clusters * tiling.cluster, tiling.threads, arguments, cluster=tiling.cluster, overlap=True)
    return out
