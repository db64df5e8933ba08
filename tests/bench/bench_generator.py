"""Milliseconds a frame, ours and others', as one Markdown table: python tests/bench/bench_generator.py

Ours runs through the engine: scheduler, prefill, hand-over to an event loop where every stream has a
reader that takes frames as the server does (1, 1, 2, 4, 8, 8 …). Times are between frames that the
engine's thread has in hand, all streams running, prompts of their own (nothing shared), about
`--context` rows each. Random weights; CSM-1B's shapes in bf16 unless --tiny says otherwise.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import platform
import statistics
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from baselines import random_model, sesame_loop, transformers_generate

from models.bundle import GeneratorPart, LlamaShape, load_bundle
from services.backbone.blocks import BLOCK_TOKENS, BlockPool, blocks_for
from services.backbone.cache import block_bytes
from services.backbone.engine import Engine
from services.backbone.frame_stream import FrameStream
from services.backbone.fused_llama import KernelPlan
from services.backbone.graph_runner import GraphRunner, kernel_plan_for
from services.backbone.prompt import Prompt
from services.backbone.request import Request, Sampling
from services.backbone.scheduler import Scheduler

SECTIONS = ("ours", "first", "joins", "memory", "torchtune", "transformers")
RAMP = (1, 1, 2, 4, 8)
TINY = GeneratorPart(
    96, 67, 32,
    LlamaShape(layers=2, heads=4, kv_heads=2, dim=64, intermediate_dim=160, max_seq_len=2048),
    LlamaShape(layers=2, heads=2, kv_heads=1, dim=32, intermediate_dim=96, max_seq_len=33),
    (), Path(),
)  # fmt: skip


class Timed:
    """A runner that notes when the frames of each step have come, and for how many slots."""

    def __init__(self, runner: GraphRunner):
        self._runner = runner
        self.frames_ahead = runner.frames_ahead
        self.begin, self.prefill, self.release = runner.begin, runner.prefill, runner.release
        self.prefilled_tokens = runner.prefilled_tokens
        self.steps: list[tuple[float, int]] = []

    def launch(self, slots):
        pending = self._runner.launch(slots)

        def collect():
            codes = pending()
            self.steps.append((time.perf_counter(), len(slots)))
            return codes

        return collect

    def intervals_ms(self, least: int) -> list[float]:
        """Between successive steps that each served at least so many slots."""
        pairs = zip(self.steps, self.steps[1:], strict=False)
        return [(b - a) * 1e3 for (a, slots_a), (b, slots_b) in pairs if min(slots_a, slots_b) >= least]


class Bench:
    """An engine over the runner. Streams that are set up wait for `release()`, then all run."""

    def __init__(self, runner: GraphRunner, part: GeneratorPart, slots: int):
        self.timed, self._runner, self._part = Timed(runner), runner, part
        self.pool = BlockPool(runner.blocks, prefix_cache=False)
        self.scheduler = Scheduler(slots=slots, queue_capacity=slots, pool=self.pool, buffer_frames=1)
        self.engine = Engine(self.timed, self.scheduler)
        self.readers: list[asyncio.Task] = []
        self._draw = np.random.default_rng(0)
        self._seed = 0

    async def __aenter__(self):
        self.engine.start()
        return self

    async def __aexit__(self, *_):
        for reader in self.readers:
            reader.cancel()
        await asyncio.gather(*self.readers, return_exceptions=True)
        await self.engine.stop(0)

    def submit(self, rows: int, frames: int) -> FrameStream:
        """A prompt of random text and audio rows that no other request shares."""
        part, self._seed = self._part, self._seed + 1
        values = np.zeros((rows, part.codebooks + 1), dtype=np.int64)
        mask = np.zeros_like(values, dtype=bool)
        values[:, :-1] = self._draw.integers(0, part.audio_vocab_size - 3, (rows, part.codebooks))
        mask[:-10, :-1] = True
        values[:, -1] = self._draw.integers(1, part.text_vocab_size, rows)
        mask[-10:, -1] = True
        prompt = Prompt(values, mask, rows, 0)
        return self.engine.submit(Request(prompt, Sampling(seed=self._seed), frames, prefill_tokens=rows))

    async def fill(self, count: int, rows: int, frames: int) -> None:
        """`count` streams with their prompts read; each makes one frame and waits for its reader."""
        streams = [self.submit(rows, frames) for _ in range(count)]
        for stream in streams:
            await stream.prefilled()
        self.scheduler._buffer_frames = 128
        self.timed.steps.clear()
        self.readers += [asyncio.ensure_future(_read(stream)) for stream in streams]

    async def steps(self, count: int) -> None:
        wanted = len(self.timed.steps) + count
        while len(self.timed.steps) < wanted:
            await asyncio.sleep(0.005)


async def _read(stream: FrameStream) -> None:
    sizes = iter(RAMP)
    while await stream.read(next(sizes, RAMP[-1])):
        pass


def row(what: str, batch: int, times: list[float]) -> str:
    return f"| {what} | {batch} | {min(times):.2f} | {statistics.median(times):.2f} | {max(times):.2f} |"


async def ours(runner: GraphRunner, part: GeneratorPart, batch: int, context: int, frames: int) -> str:
    async with Bench(runner, part, batch) as bench:
        warm = 10
        await bench.fill(batch, context - frames // 2 - warm, frames + warm + 40)
        await bench.steps(frames + warm)
        return row("this generator", batch, bench.timed.intervals_ms(batch)[warm:][:frames])


async def first_frame(runner: GraphRunner, part: GeneratorPart, running: int, context: int) -> str:
    """From submit to the first codes in the caller's hands, 60-row prompts, one after another."""
    async with Bench(runner, part, running + 1) as bench:
        bench.scheduler._buffer_frames = 128
        if running:
            await bench.fill(running, context - 100, 200)
            await bench.steps(10)
        times = []
        for _ in range(12):
            began = time.perf_counter()
            stream = bench.submit(60, 2)
            await stream.read(1)
            times.append((time.perf_counter() - began) * 1e3)
            await stream.read(1)
        return row("first frame, 60-row prompt", running, times[2:])


async def joins(runner: GraphRunner, part: GeneratorPart, running: int, context: int) -> str:
    """What running streams wait for a frame while 64 requests with 100-row prompts join at once."""
    async with Bench(runner, part, running + 64) as bench:
        await bench.fill(running, context - 100, 240)
        await bench.steps(40)
        before = statistics.median(bench.timed.intervals_ms(running)[10:])
        bench.timed.steps.clear()
        streams = [bench.submit(100, 100) for _ in range(64)]
        for stream in streams:  # their frames wait meanwhile: a stream has one reader at a time
            await stream.prefilled()
        waits = bench.timed.intervals_ms(running)
        p99 = sorted(waits)[min(len(waits) - 1, int(len(waits) * 0.99))]
        return f"| 64 join: frame p99 over the median before | {running} | | {p99 - before:.2f} | {max(waits) - before:.2f} |"


def memory(runner: GraphRunner, part: GeneratorPart, grew: int) -> str:
    """The cache as allocated, against 2 · layers · kv heads · head dim · bytes a row."""
    row_bytes = block_bytes(part.backbone, runner.dtype) / BLOCK_TOKENS
    measured = grew / runner.blocks * blocks_for(500)
    return (
        f"\nA stream of 500 rows: {500 * row_bytes / 1e6:.2f} MB by arithmetic, {measured / 1e6:.2f} MB as allocated "
        f"({grew / 2**30:.2f} GiB for {runner.blocks} blocks; everything else included: weights' other forms, depth cache)."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 64, 256, 512, 1024])
    parser.add_argument("--context", type=int, default=430)
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--persistent-depth", action="store_true", help="as CSM_BACKBONE_PERSISTENT_DEPTH=on")
    parser.add_argument(
        "--library", action="store_true", help="frames of the library's products and the first kernels alone"
    )
    parser.add_argument("--tiny", action="store_true", help="small shapes, to try this script without a GPU")
    arguments = parser.parse_args()
    device, dtype = torch.device(arguments.device), getattr(torch, arguments.dtype)
    part = TINY if arguments.tiny else load_bundle("csm-1b").generator
    context, frames, only = arguments.context, arguments.frames, arguments.only
    is_cuda = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if is_cuda else platform.processor() or "CPU"
    triton = __import__("triton").__version__ if is_cuda else "none"
    print(
        f"{name}; torch {torch.__version__}, CUDA {torch.version.cuda}, triton {triton}, Python {platform.python_version()}"
    )
    print(
        f"{'tiny' if arguments.tiny else 'CSM-1B'} shapes, {arguments.dtype}, about {context} rows of context, {frames} frames\n"
    )
    print("| ms a frame | batch | min | median | max |\n|---|---|---|---|---|", flush=True)
    notes = []
    if set(only) & {"ours", "first", "joins", "memory"}:
        most = max(arguments.batches)
        model = random_model(part, device, dtype)
        before = torch.cuda.memory_allocated(device) if is_cuda else 0
        blocks = (most + 64) * blocks_for(context + 250)
        plan = partial(kernel_plan_for, persistent_depth=arguments.persistent_depth)
        if arguments.library:
            plan = lambda _: KernelPlan(step_attention=False)  # noqa: E731
        runner = GraphRunner(model, slots=most + 64, blocks=blocks, kernel_plan=plan)
        grew = torch.cuda.memory_allocated(device) - before if is_cuda else 0
        began = time.perf_counter()
        runner.warm_up()
        gc.collect()
        gc.freeze()  # as services.runtime.server does
        notes.append(
            f"\nWarm-up (kernels compiled, {len(runner._graphs) + len(runner._prefill_graphs)} graphs captured): {time.perf_counter() - began:.1f} s."
        )
        if "ours" in only:
            for batch in arguments.batches:
                print(asyncio.run(ours(runner, part, batch, context, frames)), flush=True)
        for running in (0, min(512, most)):
            if "first" in only:
                print(asyncio.run(first_frame(runner, part, running, context)), flush=True)
        if "joins" in only:
            print(asyncio.run(joins(runner, part, min(512, most), context)), flush=True)
        if "memory" in only:
            notes.append(memory(runner, part, grew))
        del runner, model
        gc.collect()
        torch.cuda.empty_cache()
    if "torchtune" in only:
        for compiled in (False, True):
            what = f"Sesame's loop over torchtune, {'compiled' if compiled else 'eager'}"
            times = sesame_loop(part, device, dtype, compiled=compiled, context=context, frames=frames)
            print(row(what, 1, times), flush=True)
            gc.collect()
            torch.cuda.empty_cache()
    if "transformers" in only:
        for batch in (1, 16):
            times = transformers_generate(
                device, dtype, batch=batch, context=context, frames=frames, tiny=arguments.tiny
            )
            print(row("transformers, static cache, compiled", batch, times), flush=True)
            gc.collect()
            torch.cuda.empty_cache()
    print("\n".join(notes))


if __name__ == "__main__":
    main()
