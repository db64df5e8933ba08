"""Milliseconds a frame for each choice of kernels and batch: python tests/bench/bench_variants.py

Graphs alone, without scheduler and hand-over. "same codes" is the share of a first frame's codes that
the library's kernels give: rounding changes some in bf16, a wrong kernel nearly all.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
import traceback

import torch
from baselines import random_model
from bench_generator import TINY
from frames import Frames

from models.bundle import load_bundle
from services.backbone.fused_llama import KernelPlan
from services.backbone.graph_runner import kernel_plan_for
from services.backbone.kernels.persistent import MAX_BATCH, supports


def choices(batch: int, persistent_depth: bool) -> dict[str, KernelPlan]:
    found = {"library": KernelPlan(step_attention=False), "step attention": KernelPlan()}
    if batch == 1:
        found["matvec"] = KernelPlan(matvec=True)
        found["matvec, overlap"] = KernelPlan(matvec=True, overlap=True)
    else:
        found["step attention, gated matmul"] = KernelPlan(gated_matmul=True)
        found["the same, split products"] = KernelPlan(gated_matmul=True, split_products=True)
        found["the same, split products, overlap"] = KernelPlan(gated_matmul=True, split_products=True, overlap=True)
        found["deferred norms, overlap"] = KernelPlan(gated_matmul=True, deferred_norms=True, overlap=True)
    if persistent_depth and batch <= MAX_BATCH:
        found["persistent depth"] = dataclasses.replace(
            KernelPlan() if batch > 1 else kernel_plan_for(1), persistent_depth=True
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64, 512, 1024, 256, 16, 4])
    parser.add_argument("--context", type=int, default=430)
    parser.add_argument("--frames", type=int, default=30)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small shapes, to try this script without a GPU")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    part = TINY if arguments.tiny else load_bundle("csm-1b").generator
    model = random_model(part, device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    frames = Frames(model, part, max(arguments.batches), arguments.context)
    print("| batch | kernel plan | ms: min | median | same codes | made in s |\n|---|---|---|---|---|---|", flush=True)
    for batch in arguments.batches:
        reference = None
        for name, plan in choices(batch, supports(part, model.codebook0_head.weight.dtype, device)).items():
            began = time.perf_counter()
            try:
                frame = frames.build(batch, plan)
                took = time.perf_counter() - began
                frames.rewind(batch)
                frame()
                codes = frames.codes(batch)
                reference = codes if reference is None else reference
                same = (codes == reference).float().mean().item()
                times = frames.times_ms(frame, batch, arguments.frames)
            except Exception:  # one choice that fails must not cost the others their numbers
                traceback.print_exc()
                print(f"| {batch} | {name} | failed | | | |", flush=True)
                continue
            print(
                f"| {batch} | {name} | {min(times):.2f} | {statistics.median(times):.2f} | {same:.0%} | {took:.1f} |",
                flush=True,
            )
            del frame


if __name__ == "__main__":
    main()
