"""Milliseconds of a pass of Mimi's decoder, ours and stock moshi's: python tests/gpu/bench_codec.py

Public shapes, random weights, fp32. "pass" is the captured work alone; "decode" all that a caller waits
for, from codes in the host's memory to samples there. Stock is moshi's streaming decode with its own
CUDA graphs, on the device alone. TF32 off is how the service runs (models/mimi.py says why).
"""

from __future__ import annotations

import argparse
import statistics
import time
from functools import partial

import numpy as np
import torch
from baselines import synchronize
from moshi.models import MimiModel, loaders

from services.codec.decoder import SlotDecoder


def build(device: torch.device, tiny: bool) -> MimiModel:
    torch.manual_seed(0)
    if tiny:
        import tiny_mimi

        return tiny_mimi.build().to(device)
    with torch.device(device):
        mimi = loaders.get_mimi(None, num_codebooks=32, device=device)
    for quantizer in (mimi.quantizer.rvq_first, mimi.quantizer.rvq_rest):
        for layer in quantizer.vq.layers:
            layer._codebook.embedding_sum.normal_()
    return mimi.requires_grad_(False).eval()


def times_ms(call, device: torch.device, count: int) -> list[float]:
    for _ in range(4):
        call()
    times = []
    for _ in range(count):
        synchronize(device)
        began = time.perf_counter()
        call()
        synchronize(device)
        times.append((time.perf_counter() - began) * 1e3)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 64, 256])
    parser.add_argument("--frames", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small shapes, to try this script without a GPU")
    arguments = parser.parse_args()
    device, most, count = torch.device(arguments.device), max(arguments.streams), arguments.count

    def row(what: str, streams: int, frames: int, tf32: bool, times: list[float]) -> None:
        spread = f"{min(times):.2f} | {statistics.median(times):.2f} | {max(times):.2f}"
        print(f"| {what} | {streams} | {frames} | {'on' if tf32 else 'off'} | {spread} |", flush=True)

    print("| ms | streams | frames | TF32 | min | median | max |\n|---|---|---|---|---|---|---|", flush=True)
    for tf32 in (False, True):
        torch.backends.cudnn.allow_tf32 = tf32
        decoder = SlotDecoder(build(device, arguments.tiny), slots=most, graphs=True)
        began = time.perf_counter()
        decoder.warm_up()
        synchronize(device)
        warm_s = time.perf_counter() - began
        draw = np.random.default_rng(0)
        for streams in arguments.streams:
            for frames in arguments.frames:
                codes = draw.integers(0, decoder.bins, (streams, frames, decoder.codebooks))
                slots = draw.permutation(most)[:streams].tolist()
                batch = list(zip(slots, codes, strict=True))
                chosen = decoder._graphs._passes[streams, frames]
                if chosen.graph is not None:
                    row("pass", streams, frames, tf32, times_ms(chosen.graph.replay, device, count))
                row("decode", streams, frames, tf32, times_ms(partial(decoder.decode, batch), device, count))
        print(f"| (warm-up {warm_s:.1f} s, {len(decoder._graphs._passes)} passes) | | | | | | |")
        del decoder
    torch.backends.cudnn.allow_tf32 = True  # as torch comes
    stock = build(device, arguments.tiny)
    for streams in arguments.streams:
        for frames in arguments.frames:
            codes = torch.randint(0, stock.cardinality, (streams, stock.num_codebooks, frames), device=device)
            with torch.inference_mode(), stock.streaming(streams):
                row("stock moshi", streams, frames, True, times_ms(partial(stock.decode, codes), device, count))


if __name__ == "__main__":
    main()
