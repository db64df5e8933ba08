"""First-frame latency of an early and a late turn of conversations: python tests/bench/bench_conversation.py

Every turn's prompt is the one before it, the frames that were generated and new text, as the gateway sends it.
Conversations run at once, each at another turn, and start over after their last one, so the load is the same
whenever a turn is measured: from its parts in the server's hands to its first codes at the reader. Through
scheduler, prefix cache, prefill and engine, without gRPC. Random weights; CSM-1B's shapes unless --tiny.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from baselines import random_model
from bench_generator import TINY

from models.bundle import GeneratorPart, load_bundle
from services.backbone.blocks import BlockPool, blocks_for
from services.backbone.engine import Engine
from services.backbone.frame_rows import codes_of
from services.backbone.graph_runner import GraphRunner
from services.backbone.prompt import Audio, PromptLimits, Text
from services.backbone.request import Request, Sampling
from services.backbone.scheduler import Scheduler


@dataclass(frozen=True)
class Shape:
    """Of every conversation: tokens of the voice prompt, text tokens and frames of a turn, turns."""

    voice: int
    text: int
    frames: int
    turns: int

    def prompt_tokens(self, turn: int) -> int:
        """Turns count from 1; each earlier one left its frames and the frame that ends them."""
        return self.voice + turn * self.text + (turn - 1) * (self.frames + 1)

    @property
    def max_tokens(self) -> int:
        return self.prompt_tokens(self.turns) + self.frames


@dataclass
class Sample:
    latency_ms: float
    prompt_tokens: int
    prefilled_tokens: int


@dataclass
class Samples:
    by_turn: dict[int, list[Sample]] = field(default_factory=lambda: defaultdict(list))
    is_steady: bool = False  # all conversations have begun

    def row(self, conversations: int, turn: int, cached: str) -> str:
        found = self.by_turn[turn]
        times = sorted(sample.latency_ms for sample in found)
        p95 = times[min(len(times) - 1, int(len(times) * 0.95))]
        prefilled = max(sample.prefilled_tokens for sample in found)
        return (
            f"| {conversations} | {cached} | {turn} | {found[0].prompt_tokens} | {prefilled} | {len(found)} "
            f"| {statistics.median(times):.2f} | {p95:.2f} |"
        )


class Talks:
    """Conversations over one engine."""

    def __init__(self, engine: Engine, part: GeneratorPart, shape: Shape):
        self._engine, self._part, self._shape = engine, part, shape
        self._limits = PromptLimits(
            part.codebooks, part.text_vocab_size, part.audio_vocab_size - 3, part.backbone.max_seq_len
        )
        self._draw = np.random.default_rng(0)
        self.samples = Samples()
        self._begun = 0

    async def run(self, conversations: int, rounds: int) -> None:
        """Each conversation goes `rounds` times through all its turns, from a turn of its own on."""
        spread = [index * self._shape.turns // conversations for index in range(conversations)]
        await asyncio.gather(*(self._talk(first + 1, conversations, rounds) for first in spread))

    async def _talk(self, turn: int, conversations: int, rounds: int) -> None:
        parts = self._history(turn)
        for number in range(rounds * self._shape.turns + 1):
            parts.append(Text(self._draw.integers(1, self._part.text_vocab_size, self._shape.text).tolist()))
            parts.append(Audio(await self._turn(turn, parts)))
            if number == 0:
                self._begun += 1
                self.samples.is_steady = self._begun == conversations
            turn += 1
            if turn > self._shape.turns:
                turn, parts = 1, self._history(1)

    async def _turn(self, turn: int, parts: Sequence[Text | Audio]) -> list[list[int]]:
        is_measured = self.samples.is_steady
        began = time.perf_counter()
        prompt, cap = self._limits.build(parts, (), self._shape.frames)
        sampling, keys = Sampling(seed=int(self._draw.integers(2**62))), prompt.prefix_keys()
        request = Request(prompt, sampling, cap, prefill_tokens=len(prompt.tokens), prefix_keys=keys)
        generation = self._engine.submit(request)
        frames = await generation.read(1)
        if is_measured:
            table = generation.seq.table
            assert table is not None
            tokens = len(prompt.tokens)
            sample = Sample((time.perf_counter() - began) * 1e3, tokens, tokens - table.cached_tokens)
            self.samples.by_turn[turn].append(sample)
        while more := await generation.read(8):
            frames += more
        return codes_of(frames).tolist()

    def _history(self, turn: int) -> list[Text | Audio]:
        """A voice of its own and the turns before `turn`, random."""
        shape, parts = self._shape, [self._audio(self._shape.voice - 1)]
        for _ in range(turn - 1):
            parts += [Text([1] * shape.text), self._audio(shape.frames)]
        return parts

    def _audio(self, frames: int) -> Text | Audio:
        return Audio(self._draw.integers(1, self._part.audio_vocab_size - 3, (frames, self._part.codebooks)).tolist())


async def measure(
    runner: GraphRunner, part: GeneratorPart, shape: Shape, conversations: int, rounds: int, prefix_cache: bool
) -> Samples:
    pool = BlockPool(runner.blocks, prefix_cache=prefix_cache)
    engine = Engine(runner, Scheduler(slots=runner.slots, queue_capacity=conversations, pool=pool))
    talks = Talks(engine, part, shape)
    engine.start()
    try:
        await talks.run(conversations, rounds)
    finally:
        await engine.stop(10)
    return talks.samples


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--conversations", type=int, nargs="+", default=[1, 256], help="at once")
    parser.add_argument("--rounds", type=int, help="default: 10 for one conversation, otherwise 2")
    parser.add_argument("--voice", type=int, default=170, help="tokens of the voice prompt")
    parser.add_argument("--text", type=int, default=20, help="text tokens of a turn")
    parser.add_argument("--frames", type=int, default=48, help="frames of a turn")
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--early", type=int, default=2, help="the turn to compare the last one with")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--uncached", action="store_true", help="also without the prefix cache")
    parser.add_argument("--tiny", action="store_true", help="small shapes, to try this script without a GPU")
    arguments = parser.parse_args(argv)
    device, dtype = torch.device(arguments.device), getattr(torch, arguments.dtype)
    part = TINY if arguments.tiny else load_bundle("csm-1b").generator
    shape = Shape(arguments.voice, arguments.text, arguments.frames, arguments.turns)
    most = max(arguments.conversations)
    blocks = (most + 1) * (blocks_for(shape.max_tokens) + 1)
    runner = GraphRunner(random_model(part, device, dtype), slots=most, blocks=blocks)
    runner.warm_up()
    if device.type == "cuda":
        gc.collect()
        gc.freeze()  # as services.runtime.server does
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU"
    print(f"{name}; torch {torch.__version__}, {'tiny' if arguments.tiny else 'CSM-1B'} shapes, {arguments.dtype}\n")
    print(
        "| conversations | prefix cache | turn | prompt tokens | prefilled, at most | samples | first frame, median ms "
        "| p95 ms |\n|---|---|---|---|---|---|---|---|",
        flush=True,
    )
    for prefix_cache in (True, False) if arguments.uncached else (True,):
        for conversations in arguments.conversations:
            rounds = arguments.rounds or (10 if conversations == 1 else 2)
            samples = asyncio.run(measure(runner, part, shape, conversations, rounds, prefix_cache))
            for turn in (arguments.early, arguments.turns):
                print(samples.row(conversations, turn, "on" if prefix_cache else "off"), flush=True)


if __name__ == "__main__":
    main()
