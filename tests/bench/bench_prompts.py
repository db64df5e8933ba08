"""Clips of context audio encoded a second, ours and stock moshi's: python tests/bench/bench_prompts.py

Mimi's public shape with random weights, by the project's own loading. So many clips wait at once; the time is that
from samples in the host's memory to all codes there. Ours go through the service's own Batcher, most alike
first; "alone" is one clip a pass. Stock is moshi's MimiModel.encode without its torch.compile, clip by clip and all
in one call. Which codes are as those of a clip alone is seen in fp32: sums in another order tip close decisions, and with
one code all those behind it in its frame. First of all, what a pass costs whose shape the device's libraries have not seen: why
clips are padded to few lengths there, and the service makes one pass of each before it is ready.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from baselines import synchronize
from moshi.models import MimiModel

from models.bundle import load_bundle
from models.mimi import load_mimi
from services.engine.batcher import Batcher
from services.engine.loop import DeviceLoop
from services.tokenizer.batch_policy import batch_policy
from services.tokenizer.config import TokenizerSettings
from services.tokenizer.encoder import ClipEncoder

Clips = list[np.ndarray]


def load(device: torch.device, tiny: bool) -> MimiModel:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if tiny:
            from support import tiny_mimi

            return load_mimi(load_bundle(str(tiny_mimi.write_bundle(folder))), device)
        import bundle_csm_1b

        bundle = bundle_csm_1b.write_toml(folder)
        bundle_csm_1b.write_mimi(bundle, device)
        return load_mimi(bundle, device)


def noise(count: int, shortest_s: float, longest_s: float, rate_hz: int) -> Clips:
    draw = np.random.default_rng(count)
    lengths = (draw.uniform(shortest_s, longest_s, count) * rate_hz).astype(int)
    return [draw.normal(0, 0.2, length).astype(np.float32) for length in lengths]


class Ours:
    """Clips that wait at once, encoded as the service has them encoded."""

    def __init__(self, encoder: ClipEncoder, most: int, most_audio_s: float):
        chosen = partial(batch_policy, max_samples=int(most_audio_s * encoder.sample_rate_hz))
        self._loop, self._device = asyncio.new_event_loop(), DeviceLoop("bench")

        async def batcher() -> Batcher:
            return Batcher(encoder.encode_all, self._device, most, chosen)

        self._batches = self._loop.run_until_complete(batcher())

    def __call__(self, clips: Clips) -> Clips:
        async def run() -> Clips:
            done = await asyncio.gather(*(self._batches.run(clip, len(clip)) for clip in clips))
            return [each.result for each in done]

        return self._loop.run_until_complete(run())

    def close(self) -> None:
        self._device.close()
        self._loop.close()


@torch.inference_mode()
def stock_each(mimi: MimiModel, device: torch.device, clips: Clips) -> Clips:
    return [mimi.encode(torch.from_numpy(clip)[None, None].to(device))[0].T.cpu().numpy() for clip in clips]


@torch.inference_mode()
def stock_together(mimi: MimiModel, device: torch.device, clips: Clips) -> Clips:
    rows = torch.zeros(len(clips), 1, max(map(len, clips)))
    for row, clip in zip(rows[:, 0].numpy(), clips, strict=True):
        row[: len(clip)] = clip
    codes = mimi.encode(rows.to(device)).transpose(1, 2).cpu().numpy()
    return [own[: -(-len(clip) // mimi.frame_size)] for own, clip in zip(codes, clips, strict=True)]


def equal(one: Clips, other: Clips) -> str:
    """Share of codes that are the same, and of frames that have no other."""
    same = np.concatenate([a == b for a, b in zip(one, other, strict=True)])
    return f"{100 * same.mean():.3f} % of {same.size:,} codes, {100 * same.all(axis=1).mean():.2f} % of frames"


def timed(call: Callable[[], Clips], device: torch.device, count: int) -> tuple[list[float], float]:
    """Milliseconds of each call, and the most GiB of the device's memory that they held."""
    call()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    times = []
    for _ in range(count):
        synchronize(device)
        began = time.perf_counter()
        call()
        times.append((time.perf_counter() - began) * 1e3)
    return times, torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else float("nan")


def table(arguments: argparse.Namespace, mimi: MimiModel, device: torch.device, together: Ours, alone: Ours) -> None:
    rate_hz = mimi.sample_rate
    print(
        "\n| | precision | clips | seconds each | ms: min | median | max | clips/s | audio s/s | GiB |\n"
        + "|---" * 10
        + "|"
    )
    loads = [(count, arguments.seconds, arguments.seconds) for count in arguments.clips]
    loads.append((max(arguments.clips), 0.4 * arguments.seconds, 2 * arguments.seconds))
    for number, shortest_s, longest_s in loads:
        clips = noise(number, shortest_s, longest_s, rate_hz)
        audio_s = sum(map(len, clips)) / rate_hz
        lengths = f"{shortest_s:g}" if shortest_s == longest_s else f"{shortest_s:g}–{longest_s:g}"
        calls = {
            "ours": together,
            "ours, alone": alone,
            "stock moshi, clip by clip": partial(stock_each, mimi, device),
            "stock moshi, one batch": partial(stock_together, mimi, device),
        }
        for name, call in calls.items():
            for tf32 in [False, True] if name.startswith("stock") and device.type == "cuda" else [False]:
                torch.backends.cudnn.allow_tf32 = tf32
                head = f"| {name} | {'TF32' if tf32 else 'fp32'} | {number} | {lengths} |"
                try:
                    times, gib = timed(partial(call, clips), device, arguments.count)
                except torch.OutOfMemoryError:
                    print(f"{head} out of memory | | | | | |", flush=True)
                    continue
                median_s = statistics.median(times) / 1e3
                spread = f"{min(times):.1f} | {statistics.median(times):.1f} | {max(times):.1f}"
                print(f"{head} {spread} | {number / median_s:.1f} | {audio_s / median_s:.0f} | {gib:.1f} |", flush=True)
    torch.backends.cudnn.allow_tf32 = False


def codes(arguments: argparse.Namespace, mimi: MimiModel, device: torch.device, together: Ours, alone: Ours) -> None:
    clips = noise(max(arguments.clips), 0.4 * arguments.seconds, 2 * arguments.seconds, mimi.sample_rate)
    own, stock = alone(clips), stock_each(mimi, device, clips)
    print("\n| codes in fp32 | as those of | equal |\n|---|---|---|")
    print(f"| ours in passes of {arguments.batch} | ours alone | {equal(together(clips), own)} |")
    print(f"| ours alone | stock moshi's, clip by clip | {equal(own, stock)} |")
    print(
        f"| stock moshi's in one batch | stock moshi's, clip by clip | {equal(stock_together(mimi, device, clips), stock)} |",
        flush=True,
    )


def first_times(arguments: argparse.Namespace, encoder: ClipEncoder) -> None:
    """The price of a shape that is new, of clips that are not padded, by lengths that nothing before had."""
    print("| passes of | ms, a new length: median | most | again: median | most |\n|---|---|---|---|---|")
    for number in sorted({1, min(8, max(arguments.clips))}):
        new, again = [], []
        for index in range(6):
            length = int((0.3 + 0.17 * index) * arguments.seconds * encoder.sample_rate_hz)
            clips = [np.zeros(length, np.float32) for _ in range(number)]
            for times in (new, again):
                began = time.perf_counter()
                encoder.encode_all(clips)
                times.append((time.perf_counter() - began) * 1e3)
        spread = (f"{statistics.median(times):.0f} | {max(times):.0f}" for times in (new, again))
        print(f"| {number} | {' | '.join(spread)} |", flush=True)


def main() -> None:
    defaults = TokenizerSettings()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, nargs="+", default=[1, 8, 64], help="that wait at once")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each")
    parser.add_argument("--batch", type=int, default=32, help="clips of one pass, as CSM_TOKENIZER_BATCH")
    parser.add_argument("--audio-s", type=float, default=defaults.batch_audio_s, help="as CSM_TOKENIZER_BATCH_AUDIO_S")
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small shapes, to try this script without a GPU")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    mimi = load(device, arguments.tiny)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    moshi = importlib.metadata.version("moshi")
    print(f"{where}; torch {torch.__version__}, moshi {moshi}, Python {platform.python_version()}; "
          f"{mimi.num_codebooks} codebooks, passes of at most {arguments.batch} clips and {arguments.audio_s:g} s\n", flush=True)  # fmt: skip
    encoder = ClipEncoder(mimi)
    first_times(arguments, ClipEncoder(mimi, pad=False))
    began = time.perf_counter()
    encoder.warm_up()
    print(f"\nwarm-up {time.perf_counter() - began:.1f} s", flush=True)
    together, alone = (Ours(encoder, most, arguments.audio_s) for most in (arguments.batch, 1))
    try:
        table(arguments, mimi, device, together, alone)
        codes(arguments, mimi, device, together, alone)
    finally:
        together.close()
        alone.close()


if __name__ == "__main__":
    main()
