"""Watts, clock and joules of a frame's kernels, each kind by itself: python tests/bench/bench_power.py

A card that is at its power limit lowers its clock until what it does takes so many watts. Then a frame takes as long as its
joules at the limit's watts. Each row is the second half of 0.8 s of one kernel after another, each with another layer's
weights. Draws, norms and embeddings are not among them. nvidia-smi tells watts and clock.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import subprocess
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from baselines import random_model
from frames import Frames
from torch import Tensor

from models.bundle import load_bundle
from services.backbone.fused_llama import Attend, FusedLlama
from services.backbone.graph_runner import kernel_plan_for
from services.backbone.kernels import triton_ops as ops
from services.engine.graphs import GraphRecorder

_CONTEXT = 430


class Meter:
    """Reads power and clock of the GPU all the time."""

    def __init__(self, gpu: int) -> None:
        """gpu: nvidia-smi's number of it."""
        self._seen: list[tuple[float, float, float]] = []
        asked = ["--query-gpu=power.draw.instant,clocks.sm", "--format=csv,noheader,nounits", "-lms", "40"]
        self._process = subprocess.Popen(["nvidia-smi", "-i", str(gpu), *asked], stdout=subprocess.PIPE, text=True)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            watts, clock = map(float, line.split(","))
            self._seen.append((time.perf_counter(), watts, clock))

    def between(self, began: float, ended: float) -> tuple[float, float]:
        """Mean watts and MHz."""
        seen = [each for each in self._seen if began <= each[0] <= ended]
        return statistics.mean(each[1] for each in seen), statistics.mean(each[2] for each in seen)

    def close(self) -> None:
        self._process.kill()


def steady(
    replay: Callable[[], None], meter: Meter, seconds: float, before: Callable[[], None]
) -> tuple[float, float, float]:
    """(ms of a replay, W, MHz) of the second half. before: runs ahead of each 30 replays, not timed."""
    torch.cuda.synchronize()
    began, pairs = time.perf_counter(), []
    while time.perf_counter() - began < seconds:
        before()
        first, last = (torch.cuda.Event(enable_timing=True) for _ in "ab")
        first.record()
        for _ in range(30):
            replay()
        last.record()
        pairs.append((first, last))
        if len(pairs) > 2:
            pairs[-3][1].synchronize()
    torch.cuda.synchronize()
    ended = time.perf_counter()
    times = [first.elapsed_time(last) / 30 for first, last in pairs]
    return statistics.mean(times[len(times) // 2 :]), *meter.between((began + ended) / 2, ended)


def noise(*size: int) -> Tensor:
    return torch.randn(*size, device="cuda", dtype=torch.bfloat16)


class Kind(NamedTuple):
    """run() makes `launches` of a kernel; a frame has a_frame of it."""

    name: str
    run: Callable[[], object]
    launches: int
    a_frame: int


def products(name: str, llama: FusedLlama, count: int, qkvs: int, others: int) -> list[Kind]:
    """Of all layers, three times over. qkvs, others: how many launches a frame has, of `count` rows."""
    layers, width, parts = llama._layers, llama.shape.dim, llama._parts
    assert parts is not None
    rows, gated = noise(count, width), noise(count, llama.shape.intermediate_dim)
    x, scale, squares = (
        noise(count, width).float(),
        torch.ones_like(noise(width)),
        torch.full((count, width // 128), 128.0).cuda(),
    )
    calls: dict[str, Callable] = {
        "qkv": lambda layer: ops.linear_scaled(rows, squares, 1e-5, layer.qkv),
        "out": lambda layer: ops.linear_add_scaled(rows, layer.out, x, scale, parts),
        "gate_up": lambda layer: ops.linear_gated(rows, layer.gate_up, True, squares, 1e-5),
        "down": lambda layer: ops.linear_add_scaled(gated, layer.down, x, scale, parts),
    }

    def all_layers(call: Callable) -> None:
        for layer in [*layers] * 3:
            call(layer)

    return [
        Kind(f"{name} {what}", partial(all_layers, call), 3 * len(layers), qkvs if what == "qkv" else others)
        for what, call in calls.items()
    ]


def attention(llama: FusedLlama, qkv: Tensor, attends: list[Attend]) -> None:
    for attend in attends:
        for keys, values in zip(llama.cache.keys, llama.cache.values, strict=True):
            attend(qkv, keys, values)


def kinds(frames: Frames, count: int) -> list[Kind]:
    """Those of a frame of `count` slots, draws and embeddings apart."""
    step, plan, state = frames.runner._frame, kernel_plan_for(count), frames.runner._state
    backbone, depth = step.backbone, step._depth
    slots, positions = torch.arange(count).cuda(), torch.full((count,), _CONTEXT).cuda()
    paged = [backbone.paged_attention(slots, positions, state.tables, 1, plan)]
    aligned = [depth.aligned_attention(position, step._blocks_per_slot, plan) for position in range(1, 32)]
    rows, squares = noise(count, depth.shape.dim), torch.full((count, 8), 128.0).cuda()

    def heads() -> None:
        for head in step._heads[1:]:
            ops.linear_scaled(rows, squares, 1e-5, head)

    keys = backbone.cache.keys.view(-1)[: 1 << 30].view(torch.int32)
    large = [noise(8192, 8192) for _ in range(2)]
    return [
        # Its first step has two rows a slot; from the second on the first layer's qkv is a table's.
        *products("depth", depth, count, 98, 127),
        Kind("depth attention", partial(attention, depth, noise(count, 1536), aligned), 124, 124),
        Kind("heads", heads, 31, 31),
        *products("backbone", backbone, count, 16, 16),
        Kind("backbone attention", partial(attention, backbone, noise(count, 3072), paged), 16, 16),
        Kind(f"(a sum of {keys.nbytes / 1e9:.1f} GB of memory)", lambda: keys.sum(dtype=torch.int32), 1, 0),
        Kind("(a product of the library, 1.1 TFLOP)", lambda: F.linear(*large), 1, 0),
    ]


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slots", type=int, nargs="+", default=[1024, 512])
    parser.add_argument("--gpu", type=int, default=0, help="nvidia-smi's number of the one that is visible")
    arguments = parser.parse_args()
    gc.collect()
    gc.freeze()  # every capture collects garbage
    part = load_bundle("csm-1b").generator
    model = random_model(part, torch.device("cuda"), torch.bfloat16)
    frames, meter = Frames(model, part, max(arguments.slots), _CONTEXT), Meter(arguments.gpu)
    for count in arguments.slots:
        print(f"| {count} slots | us | W | MHz | ms a frame | J a frame |\n|---|---|---|---|---|---|")
        all_ms = all_joules = 0.0
        for name, run, launches, a_frame in kinds(frames, count):
            replay, _ = GraphRecorder()(run)
            ms, watts, clock = steady(replay, meter, 0.8, lambda: None)
            a_launch = ms / launches
            joules = a_launch * max(a_frame, 1) * watts / 1e3
            all_ms, all_joules = all_ms + a_launch * a_frame, all_joules + (joules if a_frame else 0.0)
            print(
                f"| {name} | {a_launch * 1e3:.1f} | {watts:.0f} | {clock:.0f} | {a_launch * a_frame:.2f} | {joules:.3f} |",
                flush=True,
            )
        replay = frames.build(count, kernel_plan_for(count))
        ms, watts, clock = steady(replay, meter, 2.0, lambda: frames.rewind(count))  # noqa: B023
        print(f"| all of these | | | | {all_ms:.2f} | {all_joules:.2f} |")
        print(f"| whole frames | | {watts:.0f} | {clock:.0f} | {ms:.2f} | {ms * watts / 1e3:.2f} |\n", flush=True)
    meter.close()


if __name__ == "__main__":
    main()
