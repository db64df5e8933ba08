"""What marking costs on a device, by streams and precision: python tests/bench/bench_watermark.py

The public 44.1 kHz shape with random weights; streams in mid-speech, each bringing the same number of frames
of 80 ms in every pass, as the service would see them at full load. "host" is the processor's time of a pass:
what one process of Python could do at most if the device took no time; "asked" is how often it asks the device for
something: a launch, a graph, a copy. "kernels" is what the device is at work, its share of the pass (where that is
small, launching takes longer than what is launched), and how many they are. "two at once": seconds of audio a second
when two threads mark half of the streams each, as the service does. The last column is the cost of a second of a
stream beside the generator's, of which it should be less than a tenth: --generator-ms a frame of --generator-streams
streams. How far marks are off is seen against a clip marked alone on the CPU.

--profile: also the time of each kernel, or operation, in passes of the most streams.
--no-graphs: passes launched one kernel after another.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from baselines import synchronize
from kernel_times import KernelTimes
from torch.profiler import ProfilerActivity, profile

from services.watermark.embedder import Embedder
from services.watermark.hparams import Hparams
from services.watermark.kernels import PRECISIONS
from services.watermark.level import RunningLevel
from services.watermark.weights import load_nets, write_random

RATE_HZ, FRAME = 24000, 1920
KEY = bytes.fromhex("13d4079bc9")
TINY = Hparams(n_fft=512, hop_length=256, message_band_size=120, message_sdr_db=20.0)
KERNELS_SHOWN = 25


def build(shape: Hparams, device: torch.device, slots: int, precision: str, graphs: bool = True) -> Embedder:
    with tempfile.TemporaryDirectory() as folder:
        nets = load_nets(write_random(Path(folder), shape, 5), device)
    return Embedder(nets, KEY, level=RunningLevel(), slots=slots, precision=precision, graphs=graphs)


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

    def halves(self) -> tuple[Load, Load]:
        """Its streams in two loads."""
        middle, loads = len(self._streams) // 2, (object.__new__(Load), object.__new__(Load))
        for load, part in zip(loads, (slice(0, middle), slice(middle, None)), strict=True):
            load._embedder, load._streams, load._pieces = self._embedder, self._streams[part], self._pieces[part]
        return loads

    def close(self) -> None:
        """Make room: what is captured is for so many streams and no more."""
        for stream in self._streams:
            stream.close()


def asked(call: Callable[[], object], count: int) -> float:
    """How often a call asks the device for something."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        for _ in range(count):
            call()
        torch.cuda.synchronize()
    names = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch", "cudaMemcpy", "cudaMemset")
    return sum(event.name.startswith(names) for event in seen.events()) / count


def two_at_once(load: Load, seconds: float) -> float:
    """Seconds of audio a second when two threads mark half of the streams each, one pass after the other, for so long."""
    began = time.perf_counter()
    samples: list[int] = []

    def mark(half: Load) -> None:
        while time.perf_counter() - began < seconds:
            samples.append(half.step())

    threads = [threading.Thread(target=mark, args=(half,)) for half in load.halves()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(samples) / RATE_HZ / (time.perf_counter() - began)


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
    for stream in streams:
        stream.close()
    return float(np.abs(heard - alone).max() / np.abs(alone - clips[1]).max())


def table(arguments: argparse.Namespace, shape: Hparams, device: torch.device, precision: str) -> Embedder:
    embedder = build(shape, device, max(arguments.streams), precision, not arguments.no_graphs)
    began = time.perf_counter()
    embedder.warm_up()
    print(f"\n## {precision}\n\nwarm-up {time.perf_counter() - began:.1f} s, {embedder.captured} passes captured\n")
    generator_ms = arguments.generator_ms / (arguments.generator_streams * FRAME / RATE_HZ)
    columns = "streams | frames | pass ms: min | median | max | host ms | asked | kernels ms | share | kernels | audio s/s | two at once | ms per audio s | kernels' | of generator's"
    print(f"| {columns} |\n" + "|---" * 15 + "|")
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
            kernels, own = " | | | ", ""  # on the CPU operations lie within one another
            if device.type == "cuda":
                seen, often = KernelTimes(load.step, device, 4), asked(load.step, 2)
                kernels = f"{often:.0f} | {seen.busy_ms:.2f} | {seen.busy_ms * arguments.count / sum(times):.2f} | {seen.launches:.0f}"
                own = f"{seen.busy_ms * arguments.count / audio_s:.3f}"
            both = f"{two_at_once(load, arguments.seconds):.0f}" if streams > 1 else ""
            print(
                f"| {streams} | {frames} | {spread} | {host_ms:.2f} | {kernels} | {1e3 / cost_ms:.0f} | {both} | {cost_ms:.3f} | {own} | {cost_ms / generator_ms:.2f} |",
                flush=True,
            )
            load.close()
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
        print(
            f"\n{streams} streams, {frames} frames: {seen.busy_ms:.2f} ms in kernels\n\n{seen.table('step', KERNELS_SHOWN)}"
        )
        load.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16, 64, 256, 512, 1024])
    parser.add_argument("--frames", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--count", type=int, default=20, help="passes, one at a time")
    parser.add_argument("--seconds", type=float, default=0.5, help="of two at once")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small shapes, to try this script without a GPU")
    parser.add_argument("--generator-ms", type=float, default=26.0, help="a frame of the generator")
    parser.add_argument("--generator-streams", type=int, default=1024, help="streams of that frame")
    parser.add_argument("--precision", nargs="+", default=["tf32", "fp16", "fp32"], choices=PRECISIONS)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--no-graphs", action="store_true")
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
