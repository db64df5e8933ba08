"""Microseconds of every product of a frame beside its floor: python tests/bench/bench_products.py

Launches follow one another in a graph, each with weights of its own, which come from memory as they do in a frame. With a
product is timed what it needs in a launch of its own: residual and norm after `out` and `down`, the activation after `gate_up`.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from services.backbone.graph_runner import kernel_plan_for
from services.backbone.kernels import triton_ops
from services.backbone.kernels.matmul import triton_linear_gated
from services.engine.graphs import GraphRecorder

TERABYTES_S, TERAFLOPS = 4.5, 790  # of an H200, measured
_CACHE_BYTES = 180 << 20  # three times the L2 cache


@dataclass(frozen=True)
class Product:
    name: str
    outputs: int
    width: int
    a_frame: int  # launches
    is_gated: bool = False
    has_norm: bool = False
    is_triton: bool = False

    @property
    def weight_rows(self) -> int:
        return self.outputs * (2 if self.is_gated else 1)

    def floor_us(self, count: int) -> float:
        """The longer of reading the weights and the rows and writing the result, and the arithmetic."""
        moved = (self.weight_rows * self.width + count * (self.width + self.outputs)) * 2
        return max(moved / TERABYTES_S, 2 * self.weight_rows * self.width * count / TERAFLOPS) / 1e6

    def call(self, count: int, device: torch.device) -> Callable[[Tensor], object]:
        """What computes it of `count` rows with a weight, as a frame of 64 slots or more does."""
        rows = torch.randn(count, self.width, device=device, dtype=torch.bfloat16)
        x = torch.randn(count, self.outputs, device=device)
        scale = torch.rand(self.outputs, device=device, dtype=torch.bfloat16)
        plan = kernel_plan_for(count)
        if plan.deferred_norms and not self.is_gated:
            if not self.has_norm:
                squares = torch.rand(count, 8, device=device)
                return lambda weight: triton_ops.linear_scaled(rows, squares, 1e-5, weight)
            parts = triton_ops.empty_parts(device)
            return lambda weight: triton_ops.linear_add_scaled(rows, weight, x, scale, parts)
        if self.has_norm:
            product = triton_ops.linear_parts if plan.split_products else F.linear
            return lambda weight: triton_ops.add_norm(x, product(rows, weight), scale, 1e-5)
        gated = triton_linear_gated if self.is_triton else triton_ops.linear_gated
        return lambda weight: gated(rows, weight) if self.is_gated else F.linear(rows, weight)


PRODUCTS = [
    Product("depth qkv", 1536, 1024, 124),
    Product("depth out", 1024, 1024, 124, has_norm=True),
    Product("depth gate_up", 8192, 1024, 124, is_gated=True),
    Product("depth gate_up, Triton", 8192, 1024, 0, is_gated=True, is_triton=True),
    Product("depth down", 1024, 8192, 124, has_norm=True),
    Product("head", 2048, 1024, 31),
    Product("backbone qkv", 3072, 2048, 16),
    Product("backbone out", 2048, 2048, 16, has_norm=True),
    Product("backbone gate_up", 8192, 2048, 16, is_gated=True),
    Product("backbone gate_up, Triton", 8192, 2048, 0, is_gated=True, is_triton=True),
    Product("backbone down", 2048, 8192, 16, has_norm=True),
]


def times_us(work: Callable[[Tensor], object], weights: list[Tensor], replays: int) -> float:
    """Median of a launch."""
    launches = max(12, len(weights))

    def run() -> None:
        for weight in itertools.islice(itertools.cycle(weights), launches):
            work(weight)

    replay, _ = GraphRecorder()(run)
    replay()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(replays + 1)]
    marks[0].record()
    for mark in marks[1:]:
        replay()
        mark.record()
    torch.cuda.synchronize()
    return statistics.median(a.elapsed_time(b) for a, b in itertools.pairwise(marks)) * 1e3 / launches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[64, 256, 512, 1024])
    parser.add_argument("--replays", type=int, default=12)
    arguments = parser.parse_args()
    device = torch.device("cuda")
    gc.collect()
    gc.freeze()  # every capture collects garbage
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, Triton {triton.__version__}\n")
    print(f"| us: floor / now | {' | '.join(map(str, arguments.rows))} |\n|{'---|' * (len(arguments.rows) + 1)}")
    sums_ms = dict.fromkeys(arguments.rows, (0.0, 0.0))
    for product in PRODUCTS:
        size = (product.weight_rows, product.width)
        copies = max(2, min(48, -(-_CACHE_BYTES // (size[0] * size[1] * 2))))
        weights = [torch.randn(size, device=device, dtype=torch.bfloat16) * product.width**-0.5 for _ in range(copies)]
        line = []
        for count in arguments.rows:
            pair = product.floor_us(count), times_us(product.call(count, device), weights, arguments.replays)
            sums_ms[count] = tuple(a + b * product.a_frame / 1e3 for a, b in zip(sums_ms[count], pair, strict=True))
            line.append(f"{pair[0]:.1f} / {pair[1]:.1f}")
        print(f"| {product.name} | {' | '.join(line)} |", flush=True)
    print(f"| ms of a frame | {' | '.join(f'{a:.2f} / {b:.2f}' for a, b in sums_ms.values())} |")


if __name__ == "__main__":
    main()
