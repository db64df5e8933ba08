"""A long prompt beside running streams: prefilled in pieces, a frame of every stream between two of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.bundle import GeneratorPart, LlamaShape
from services.backbone.blocks import BlockPool
from services.backbone.eager_runner import EagerRunner
from services.backbone.engine import Engine
from services.backbone.graph_runner import GraphRunner
from services.backbone.model import build_model, init_random
from services.backbone.prompt import Audio, PromptLimits, Text
from services.backbone.request import Request, Sampling
from services.backbone.scheduler import Scheduler
from support.backbone_engines import until

PART = GeneratorPart(
    96, 67, 4, LlamaShape(1, 4, 2, 32, 64, 2048), LlamaShape(1, 2, 1, 16, 32, 5), (), Path()
)  # fmt: skip
LIMITS = PromptLimits(4, 96, 64, 2048)


class Observed:
    """A runner that notes what it is asked for: ("prefill", slots) and ("step", slots)."""

    def __init__(self, runner):
        self._runner = runner
        self.frames_ahead = runner.frames_ahead
        self.begin, self.release, self.prefilled_tokens = runner.begin, runner.release, runner.prefilled_tokens
        self.log: list[tuple[str, list[int]]] = []

    def prefill(self, slots):
        self.log.append(("prefill", list(slots)))
        return self._runner.prefill(slots)

    def launch(self, slots):
        self.log.append(("step", list(slots)))
        return self._runner.launch(slots)


def submit(engine, parts, seed, frames):
    prompt, _ = LIMITS.build(parts)
    keys = prompt.prefix_keys()
    request = Request(prompt, Sampling(seed=seed), frames, prefill_tokens=len(prompt.tokens), prefix_keys=keys)
    return engine.submit(request)


def long_prompt():
    codes = np.random.default_rng(0).integers(1, 64, (1480, 4)).tolist()
    return [Text([1] * 9), Audio(codes), Text([2] * 10)]


@pytest.mark.parametrize("kind", [EagerRunner, GraphRunner])
async def test_1500_tokens_beside_running_streams_take_no_frame_from_them(kind):
    runner = Observed(kind(init_random(build_model(PART), 1), slots=3, blocks=250, max_prefill_tokens=128))
    engine = Engine(runner, Scheduler(slots=3, queue_capacity=0, pool=BlockPool(250)))
    engine.start()
    try:
        running = [submit(engine, [Text([5, seed])], seed, 120) for seed in (1, 2)]
        for stream in running:
            await stream.read(10)
        long = submit(engine, long_prompt(), 3, 2)
        assert len(await long.read(2)) == 2
        frames = [await stream.read(100) for stream in running]
    finally:
        await engine.stop(10)
    assert [len(each) for each in frames] == [100, 100]
    slots = [stream.seq.slot for stream in running]
    first = next(index for index, (what, given) in enumerate(runner.log) if given == [long.seq.slot])
    after = runner.log[first:]
    pieces = [index for index, (what, _) in enumerate(after) if what == "prefill"]
    assert len(pieces) == 12  # 1,499 tokens before the last one, 128 at a time
    for index in pieces:
        what, stepped = after[index + 1]
        assert what == "step" and set(slots) <= set(stepped)


@pytest.mark.parametrize("kind", [EagerRunner, GraphRunner])
async def test_what_a_cancelled_prefill_has_computed_is_not_computed_again(kind):
    """Cancelled after five pieces or more; the same prompt then prefills the rest and gives the same frames."""
    found = []
    for is_cancelled in (False, True):
        runner = Observed(kind(init_random(build_model(PART), 1), slots=2, blocks=250, max_prefill_tokens=128))
        engine = Engine(runner, Scheduler(slots=2, queue_capacity=0, pool=BlockPool(250)))
        engine.start()
        try:
            if is_cancelled:
                first = submit(engine, long_prompt(), 4, 3)
                await until(lambda runner=runner: len(runner.log) >= 5)
                first.cancel()
            again = submit(engine, long_prompt(), 5, 3)
            found.append(await again.read(3))
            assert again.seq.table.cached_tokens >= (4 * 128 if is_cancelled else 0)
        finally:
            await engine.stop(10)
    assert found[0] == found[1]
