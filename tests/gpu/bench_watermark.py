"""What marking costs on a device, by streams and precision: python tests/gpu/bench_watermark.py

The public 44.1 kHz shape with random weights; streams in mid-speech, each bringing the same number of frames
of 80 ms in every pass, as the service would see them at full load. "host" is the processor's time of a pass:
what one process of Python could do at most if the device took no time. "kernels" is what the device is at work,
and its share of the pass: where that is small, launching takes longer than what is launched. The last column is
the cost of a second of a stream beside the generator's, of which it should be less than a tenth: --generator-ms
a frame of --generator-streams streams. How far marks are off is seen against a clip marked alone on the CPU.

--profile: also the time of each kernel, or operation, in passes of the most streams.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from baselines import synchronize
from kernel_times import KernelTimes

from services.watermark.embedder import Embedder
from services.watermark.hparams import Hparams
from services.watermark.kernels import PRECISIONS
from services.watermark.level import RunningLevel
from services.watermark.weights import load_nets, write_random

RATE_HZ, FRAME = 24000, 1920
KEY = bytes.fromhex("13d4079bc9")
TINY = Hparams(n_fft=512, hop_length=256, message_band_size=120, message_sdr_db=20.0)
KERNELS_SHOWN = 25


def build(shape: Hparams, device: torch.device, slots: int, precision: str) -> Embedder:
    with tempfile.TemporaryDirectory() as folder:
        nets = load_nets(write_random(Path(folder), shape, 5), device)
    return Embedder(nets, KEY, level=RunningLevel(), slots=slots, precision=precision)


def noise(draw: np.random.Generator, samples: int) -> np.ndarray:
    return (0.1 * draw.standard_normal(samples)).astype(np.float32)


class Load:
    """So many streams beyond their look-ahead; `step` is one pass of the service."""

    def __init__(self, embedder: Embedder, streams: int, frames: int):
        draw = np.random.default_rng(0)
        self._embedder = embedder
        self._streams = [embedder.open() for _ in range(streams)]
        self._pieces = [noise(draw, frames * FRAME) for _ in range(streams)]
        ahead = embedder.lookahead_samples  # apart from each other, as callers are
        embedder.advance([(stream, noise(draw, ahead + int(draw.integers(FRAME)))) for stream in self._streams])

    def step(self) -> int:
        """Samples that came out."""
        marked = self._embedder.advance(list(zip(self._streams, self._pieces, strict=True)))
        return sum(map(len, marked))


def off_by(embedder: Embedder, shape: Hparams) -> float:
    """The largest difference to a clip marked alone on the CPU, as a share of the largest mark."""
    draw = np.random.default_rng(1)
    clips = [noise(draw, 2 * RATE_HZ + index) for index in range(3)]
    streams = [embedder.open() for _ in clips]
    marked: list[list[np.ndarray]] = [[] for _ in clips]
    for start in range(0, 2 * RATE_HZ + len(clips), FRAME):
        given = [(stream, clip[start : start + FRAME]) for stream, clip in zip(streams, clips, strict=True)]
        for parts, part in zip(marked, embedder.advance(given), strict=True):
            parts.append(part)
    alone = build(shape, torch.device("cpu"), 1, "fp32").embed(clips[1])
    heard = np.concatenate([*marked[1], streams[1].finish()])
    return float(np.abs(heard - alone).max() / np.abs(alone - clips[1]).max())


def table(arguments: argparse.Namespace, shape: Hparams, device: torch.device, precision: str) -> Embedder:
    embedder = build(shape, device, max(arguments.streams), precision)
    began = time.perf_counter()
    embedder.warm_up()
    print(f"\n## {precision}\n\nwarm-up {time.perf_counter() - began:.1f} s\n")
    generator_ms = arguments.generator_ms / (arguments.generator_streams * FRAME / RATE_HZ)
    columns = "streams | frames | pass ms: min | median | max | host ms | kernels ms | share | launches | audio s/s | ms per audio s | kernels' | of generator's"
    print(f"| {columns} |\n" + "|---" * 13 + "|")
    for frames in arguments.frames:
        for streams in arguments.streams:
            load, times = Load(embedder, streams, frames), []
            for _ in range(3):
                load.step()
            synchronize(device)
            worked, samples = time.thread_time(), 0
            for _ in range(arguments.count):
                began = time.perf_counter()
                samples += load.step()
                times.append((time.perf_counter() - began) * 1e3)
            host_ms = (time.thread_time() - worked) * 1e3 / arguments.count
            audio_s = samples / RATE_HZ
            cost_ms = sum(times) / audio_s
            spread = f"{min(times):.2f} | {statistics.median(times):.2f} | {max(times):.2f}"
            kernels, own = "| |", ""  # on the CPU operations lie within one another
            if device.type == "cuda":
                seen = KernelTimes(load.step, device, 4)
                kernels = f"{seen.busy_ms:.2f} | {seen.busy_ms * arguments.count / sum(times):.2f} | {seen.launches:.0f}"
                own = f"{seen.busy_ms * arguments.count / audio_s:.3f}"
            print(
                f"| {streams} | {frames} | {spread} | {host_ms:.2f} | {kernels} | {1e3 / cost_ms:.0f} | {cost_ms:.3f} | {own} | {cost_ms / generator_ms:.2f} |",
                flush=True,
            )
    print(f"\nmarks off by {off_by(embedder, shape):.1e} of the largest")
    if device.type == "cuda":
        print(f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB at most")
    return embedder


def kernels(arguments: argparse.Namespace, embedder: Embedder) -> None:
    streams = max(arguments.streams)
    for frames in arguments.frames:
        load = Load(embedder, streams, frames)
        for _ in range(3):
            load.step()
        seen = KernelTimes(load.step, embedder.device, 4)
        print(f"\n{streams} streams, {frames} frames: {seen.busy_ms:.2f} ms in kernels\n\n{seen.table('step', KERNELS_SHOWN)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16, 64, 256, 512, 1024])
    parser.add_argument("--frames", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small shapes, to try this script without a GPU")
    parser.add_argument("--generator-ms", type=float, default=26.0, help="a frame of the generator")
    parser.add_argument("--generator-streams", type=int, default=1024, help="streams of that frame")
    parser.add_argument("--precision", nargs="+", default=["tf32", "fp16", "fp32"], choices=PRECISIONS)
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    shape, device = TINY if arguments.tiny else Hparams(), torch.device(arguments.device)
    generator_ms = arguments.generator_ms / (arguments.generator_streams * FRAME / RATE_HZ)
    print(f"generator: {generator_ms:.3f} ms a second of a stream")
    for precision in arguments.precision:
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        embedder = table(arguments, shape, device, precision)
        if precision == arguments.precision[0]:
            ahead_ms = 1e3 * embedder.lookahead_samples / RATE_HZ
            print(f"look-ahead {ahead_ms:.0f} ms")
        if arguments.profile:
            kernels(arguments, embedder)
        del embedder


if __name__ == "__main__":
    main()
