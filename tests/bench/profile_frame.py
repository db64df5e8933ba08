"""Where a frame's time goes, kernel by kernel: python tests/bench/profile_frame.py

For each batch: how often a frame launches a kernel, how long each takes, their sum; and the time from a
frame's beginning to its end, whose difference to the sum is what lies between the launches.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from baselines import random_model
from bench_generator import TINY
from frames import Frames
from kernel_times import KernelTimes

from models.bundle import load_bundle
from services.backbone.graph_runner import kernel_plan_for


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64, 512, 1024])
    parser.add_argument("--context", type=int, default=430)
    parser.add_argument("--frames", type=int, default=5)
    parser.add_argument("--rows", type=int, default=24, help="kernels shown")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--persistent-depth", action="store_true", help="as CSM_BACKBONE_PERSISTENT_DEPTH=on")
    parser.add_argument("--tiny", action="store_true", help="small shapes, to try this script without a GPU")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    is_cuda = device.type == "cuda"
    part = TINY if arguments.tiny else load_bundle("csm-1b").generator
    model = random_model(part, device, torch.bfloat16 if is_cuda else torch.float32)
    frames = Frames(model, part, max(arguments.batches), arguments.context)
    for batch in arguments.batches:
        plan = kernel_plan_for(batch, arguments.persistent_depth)
        frame = frames.build(batch, plan)
        wall_ms = statistics.median(frames.times_ms(frame, batch, 20))
        kernels = KernelTimes(frame, device, arguments.frames)
        print(f"\nbatch {batch}, {plan}")
        print(f"frame {wall_ms:.2f} ms; {kernels.launches:.0f} launches, {kernels.busy_ms:.2f} ms in kernels\n")
        print(kernels.table("frame", arguments.rows), "\n", flush=True)
        del frame


if __name__ == "__main__":
    main()
