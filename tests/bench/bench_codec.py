"""Milliseconds of a pass of Mimi's decoder, ours and stock moshi's: python tests/bench/bench_codec.py

Public shapes, random weights, streams that are past what the transformer looks back on. "pass" is the captured
work alone; "decode" all that a caller waits for, from codes in the host's memory to samples there. Stock is
moshi's streaming decode with its own CUDA graphs, on the device alone, with TF32 as torch comes. How far
samples are off is seen against stock's one-shot decode with TF32 off, in shares of their deviation.

--profile: time of each kernel in the largest passes. --tiles: of every product, with tiles of all sizes.
"""

from __future__ import annotations

import argparse
import statistics
import time
import traceback
from functools import partial

import numpy as np
import torch
from baselines import synchronize
from kernel_times import KernelTimes
from moshi.models import MimiModel, loaders

from services.codec.decoder import SlotDecoder
from services.codec.kernels import PRECISIONS

KERNELS_SHOWN = 25
# rows, outputs and length of a tile, warps, stages
TILES = [
    (16, 32, 32, 4, 4), (16, 64, 32, 4, 4), (16, 64, 64, 4, 3), (32, 32, 32, 4, 4), (32, 64, 32, 4, 4),
    (64, 32, 32, 4, 4), (64, 64, 32, 4, 3), (64, 64, 64, 4, 2), (64, 128, 32, 4, 3), (64, 128, 32, 8, 3),
    (128, 32, 32, 4, 3), (128, 64, 32, 4, 3), (128, 64, 32, 8, 3), (128, 64, 64, 8, 2), (128, 128, 32, 8, 2),
    (128, 128, 32, 8, 3), (128, 256, 32, 8, 2),
]  # fmt: skip


def build(device: torch.device, tiny: bool) -> MimiModel:
    torch.manual_seed(0)
    if tiny:
        from support import tiny_mimi

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


def row(what: str, streams: int, frames: int, precision: str, times: list[float]) -> None:
    spread = f"{min(times):.2f} | {statistics.median(times):.2f} | {max(times):.2f}"
    print(f"| {what} | {streams} | {frames} | {precision} | {spread} |", flush=True)


@torch.inference_mode()
def look_back(decoder: SlotDecoder) -> None:
    """As if every stream had gone on for some time."""
    decoder._network._offsets.fill_(1000)


@torch.inference_mode()
def off_by(decoder: SlotDecoder, mimi: MimiModel) -> float:
    """Of three streams' samples in chunks, the largest difference to one-shot over their standard deviation."""
    torch.backends.cudnn.allow_tf32 = False
    slots = [decoder.slots - 1, 0, decoder.slots // 2][: decoder.slots]
    codes = np.random.default_rng(1).integers(0, decoder.bins, (len(slots), 150, decoder.codebooks))
    for slot in slots:
        decoder.reset(slot)
    heard = [
        np.stack(decoder.decode([(slot, stream[at : at + 8]) for slot, stream in zip(slots, codes, strict=True)]))
        for at in range(0, 150, 8)
    ]
    whole = mimi.decode(torch.from_numpy(codes).transpose(1, 2).to(next(mimi.parameters()).device))[:, 0].cpu().numpy()
    return float(np.abs(np.concatenate(heard, axis=1) - whole).max() / whole.std())


def ours(arguments: argparse.Namespace, device: torch.device, precision: str) -> None:
    mimi, most = build(device, arguments.tiny), max(arguments.streams)
    decoder = SlotDecoder(mimi, slots=most, graphs=True, precision=precision)
    decoder._graphs._streams, decoder._graphs.frames = sorted(arguments.streams), sorted(arguments.frames)
    began = time.perf_counter()
    decoder.warm_up()
    synchronize(device)
    warm_s = time.perf_counter() - began
    draw = np.random.default_rng(0)
    for streams in arguments.streams:
        for frames in arguments.frames:
            look_back(decoder)
            slots = draw.permutation(most)[:streams].tolist()
            batch = list(zip(slots, draw.integers(0, decoder.bins, (streams, frames, decoder.codebooks)), strict=True))
            chosen = decoder._graphs._passes[streams, frames]
            whole = times_ms(partial(decoder.decode, batch), device, arguments.count)
            if chosen.replay is not None:
                row("pass", streams, frames, precision, times_ms(chosen.replay, device, arguments.count))
            row("decode", streams, frames, precision, whole)
    words = f"warm-up {warm_s:.1f} s, {len(decoder._graphs._passes)} passes; samples off by {off_by(decoder, mimi):.1e}"
    held = f", {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if device.type == "cuda" else ""
    print(f"| ({precision}: {words}{held}) | | | | | | |", flush=True)


def stock(arguments: argparse.Namespace, device: torch.device) -> None:
    torch.backends.cudnn.allow_tf32 = True
    mimi = build(device, arguments.tiny)
    for streams in arguments.streams:
        for frames in arguments.frames:
            codes = torch.randint(0, mimi.cardinality, (streams, mimi.num_codebooks, frames), device=device)
            with torch.inference_mode(), mimi.streaming(streams):
                row(
                    "stock moshi",
                    streams,
                    frames,
                    "TF32",
                    times_ms(partial(mimi.decode, codes), device, arguments.count),
                )


def kernels(arguments: argparse.Namespace, device: torch.device) -> None:
    most = max(arguments.streams)
    decoder = SlotDecoder(build(device, arguments.tiny), slots=most, graphs=True, precision=arguments.precision[0])
    decoder._graphs._streams = [most]
    decoder._graphs.frames = sorted({1, max(arguments.frames)})
    decoder.warm_up()
    for frames in decoder._graphs.frames:
        look_back(decoder)
        codes = np.random.default_rng(0).integers(0, decoder.bins, (most, frames, decoder.codebooks))
        batch = list(enumerate(codes))
        decoder.decode(batch)
        chosen = decoder._graphs._passes[most, frames]
        call = partial(decoder.decode, batch) if chosen.replay is None else chosen.replay
        wall_ms = statistics.median(times_ms(call, device, 20))
        seen = KernelTimes(call, device, 5)
        print(
            f"\n{most} streams, {frames} frames: {wall_ms:.2f} ms; {seen.launches:.0f} launches, {seen.busy_ms:.2f} ms in kernels"
        )
        print(f"\n{seen.table('pass', KERNELS_SHOWN)}\n", flush=True)


@torch.inference_mode()
def tiles(arguments: argparse.Namespace, device: torch.device) -> None:
    """Milliseconds of every product of a pass: with today's tile, and with the five best ones."""
    from services.codec.kernels import fused

    mimi, most = build(device, arguments.tiny), max(arguments.streams)
    decoder = SlotDecoder(mimi, slots=most, graphs=False, precision=arguments.precision[0])
    real, tile_of, bad = fused.product, fused.tile_of, set()
    print(
        "| streams | frames | rows | outputs | length | kind | now | best: ms, rows × outputs × length, warps, stages |\n|"
        + "---|" * 8
    )
    for streams in arguments.streams:
        for frames in arguments.frames:
            calls = {}

            def seen(x, layer, calls=calls, **options):
                count = x.shape[0] * (x.shape[1] - layer.taps + 1)
                kind = (options.get("before", False), options.get("after", ""), options.get("added") is not None)
                calls.setdefault((count, *layer.weight.shape, kind), partial(real, x, layer, **options))
                return real(x, layer, **options)

            fused.product = seen
            decoder._network.run(
                torch.arange(streams, device=device),
                torch.zeros(streams, frames, decoder.codebooks, dtype=torch.int64, device=device),
            )
            fused.product = real
            for (count, outputs, length, kind), call in calls.items():
                found = []
                for tile in [tile_of(count, outputs, length, arguments.precision[0], *kind[1:]), *TILES]:
                    if tile[0] > max(16, 2 * count) or tile[1] > max(32, 2 * outputs) or (tile, kind) in bad:
                        continue
                    fused.tile_of = lambda *_, tile=tile: tile
                    try:
                        graph = torch.cuda.CUDAGraph()
                        call()
                        synchronize(device)
                        with torch.cuda.graph(graph):
                            for _ in range(5):
                                call()
                        found.append((min(times_ms(graph.replay, device, 5)) / 5, tile))
                    except Exception as error:
                        bad.add((tile, kind))
                        print(f"| ({tile} {kind}: {type(error).__name__} {str(error)[:80]!r}) |", flush=True)
                fused.tile_of = tile_of
                best = ", ".join(f"{ms:.4f} {tile}" for ms, tile in sorted(found[1:])[:5])
                print(
                    f"| {streams} | {frames} | {count} | {outputs} | {length} | {kind} | {found[0][0]:.4f} {found[0][1]} | {best} |",
                    flush=True,
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 64, 256])
    parser.add_argument("--frames", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small shapes, to try this script without a GPU")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--tiles", action="store_true")
    parser.add_argument(
        "--precision", nargs="+", default=PRECISIONS, choices=PRECISIONS, help="the first of --profile and --tiles"
    )
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if arguments.profile:
        return kernels(arguments, device)
    if arguments.tiles:
        return tiles(arguments, device)
    print("| ms | streams | frames | precision | min | median | max |\n|---|---|---|---|---|---|---|", flush=True)
    for call in (*(partial(ours, precision=each) for each in arguments.precision), stock):
        try:
            call(arguments, device)
        except Exception:  # one that fails must not cost the others' figures
            traceback.print_exc()


if __name__ == "__main__":
    main()
