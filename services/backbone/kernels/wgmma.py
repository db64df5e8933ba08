"""What kernels by TMA on Hopper GPUs share: which devices have them, a product's ring, parts of their source.

Only bf16 and GPUs of compute capability 9.0: tiles come by TMA, and wgmma multiplies them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cache
from pathlib import Path

import torch

from services.backbone.kernels.nvrtc import HOPPER_SHARED_BYTES, compiles_for, options_for

ARCHITECTURE = "sm_90a"
COLUMNS = 64  # of a stage
SOURCES = Path(__file__).with_name("wgmma_cuda")


@cache
def has_kernels(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) == (9, 0) and compiles_for(ARCHITECTURE)


class Ring(ABC):
    """Sizes of what wgmma_cuda/ring.cu describes. A tiling says the rest: `groups`, of 64 rows, and `weights`, rows of it."""

    groups: int

    @property
    @abstractmethod
    def weights(self) -> int: ...

    @property
    def rows(self) -> int:
        return 64 * self.groups

    @property
    def threads(self) -> int:
        return 128 * self.groups + 128

    @property
    def stage_bytes(self) -> int:
        return (self.rows + self.weights) * COLUMNS * 2

    @property
    def stages(self) -> int:
        return HOPPER_SHARED_BYTES // (self.stage_bytes + 16)

    @property
    def shared_bytes(self) -> int:
        return self.stages * (self.stage_bytes + 16)

    def ptx_source(self) -> str:
        return (SOURCES / "ptx.cu").read_text() + multiply_source(self.weights)

    def source(self, product: str) -> str:
        """CUDA C++. product: the file's name."""
        return "\n".join([self.ptx_source(), *((SOURCES / name).read_text() for name in ("ring.cu", product))])

    def options(self, **values: int) -> list[str]:
        """The compiler's. values: what else the source takes from outside."""
        ring = {"GROUPS": self.groups, "WEIGHTS": self.weights, "STAGES": self.stages, "SHARED": self.shared_bytes}
        return options_for(ARCHITECTURE, {name: int(value) for name, value in {**ring, **values}.items()})


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
