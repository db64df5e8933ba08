"""The runner of captured frames, run without capture and with plain operations: against the eager one.

What a CUDA device adds (capture, kernels, copies that the host does not wait for) needs one: tests/gpu.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from models.bundle import GeneratorPart, LlamaShape
from services.backbone import graph_runner
from services.backbone.blocks import BlockPool
from services.backbone.eager_runner import EagerRunner
from services.backbone.engine import Engine
from services.backbone.graph_runner import GraphRunner
from services.backbone.model import build_model, init_random
from services.backbone.prompt import Audio, PromptLimits, Text
from services.backbone.request import FinishReason, Request, Sampling
from services.backbone.scheduler import Scheduler
from support.backbone_engines import lists
from support.backbone_slots import open_slot, own_table

PART = GeneratorPart(
    text_vocab_size=96,
    audio_vocab_size=67,
    codebooks=32,
    backbone=LlamaShape(layers=2, heads=4, kv_heads=2, dim=64, intermediate_dim=160, max_seq_len=160),
    decoder=LlamaShape(layers=2, heads=2, kv_heads=1, dim=32, intermediate_dim=96, max_seq_len=33),
    sources=(),
    folder=Path(),
)
LIMITS = PromptLimits(32, 96, 64, 160)


@pytest.fixture(scope="module")
def model():
    return init_random(build_model(PART), seed=4)


def prompt_of(index, generated=()):
    random = np.random.default_rng(index)
    audio = Audio(random.integers(0, 64, (5 + 9 * index, 32)).tolist())
    return LIMITS.build([Text([1, 2]), audio, Text(random.integers(1, 96, 3 + index).tolist())], generated)[0]


def sampling_of(index):
    return Sampling(temperature=0.8 + 0.1 * index, top_k=1 if index == 2 else 20 + index, seed=2**63 + index)


def alone(model, index, frames):
    runner = EagerRunner(model, slots=1)
    open_slot(runner, 0, prompt_of(index), sampling_of(index))
    return [runner.step([0])[0] for _ in range(frames)]


def test_staggered_streams_equal_the_eager_runners(model):
    """Six requests in five slots, joining and leaving; batches of 1, 2, 4 and 5; always a step ahead."""
    lives = {0: (0, 14), 1: (2, 5), 2: (3, 11), 3: (3, 2), 4: (6, 9), 5: (12, 6)}
    expected = {index: alone(model, index, frames) for index, (_, frames) in lives.items()}
    runner = GraphRunner(model, slots=5, max_prefill_tokens=32, batch_buckets=(1, 2, 4))
    runner.warm_up()
    free, slots, filling, together = [3, 1, 4, 0, 2], {}, [], {index: [] for index in lives}
    launched = dict.fromkeys(lives, 0)
    pending = []
    turn = 0
    while any(len(together[index]) < frames for index, (_, frames) in lives.items()):
        for index, (joins, _) in lives.items():
            if joins <= turn and not launched[index] and index not in slots and free:
                slots[index] = free.pop()
                filling.append(index)
                runner.begin(slots[index], prompt_of(index), sampling_of(index), own_table(runner, slots[index]))
        if filling:
            ready = runner.prefill([slots[index] for index in filling])
            filling = [index for index in filling if slots[index] not in ready]
        stepping = [index for index in slots if index not in filling]
        if stepping:
            pending.append((stepping, runner.launch([slots[index] for index in stepping])))
            for index in stepping:
                launched[index] += 1
                if launched[index] == lives[index][1]:
                    runner.release(slots[index])
                    free.append(slots.pop(index))
        while len(pending) > (1 if stepping else 0):
            indexes, collect = pending.pop(0)
            for index, codes in zip(indexes, collect().tolist(), strict=True):
                together[index].append(codes)
        turn += 1
    assert together == expected
    assert len({tuple(codes) for frames in expected.values() for codes in frames}) > 30


def test_prefill_packs_prompts_up_to_its_bound(model):
    runner = GraphRunner(model, slots=4, max_prefill_tokens=40)
    lengths = []
    for slot in range(4):
        lengths.append(len(prompt_of(slot).tokens))
        runner.begin(slot, prompt_of(slot), sampling_of(slot), own_table(runner, slot))
    assert lengths == [11, 21, 31, 41]
    # 10 + 20 tokens and 10 of the third; then its other 20 and 20 of the fourth; then the last 20
    assert [runner.prefill([0, 1, 2, 3]), runner.prefill([2, 3]), runner.prefill([3])] == [[0, 1], [2], [3]]
    codes = runner.launch([3, 0, 2, 1])().tolist()
    assert codes == [alone(model, index, 1)[0] for index in (3, 0, 2, 1)]


def test_a_resumed_stream_goes_on_as_the_unbroken_one(model):
    whole = alone(model, 1, 12)
    runner = GraphRunner(model, slots=2)
    open_slot(runner, 1, prompt_of(1, whole[:5]), sampling_of(1))
    assert [runner.launch([1])()[0].tolist() for _ in range(7)] == whole[5:]


@pytest.mark.parametrize("prefix_cache", [False, True])
async def test_churn_through_the_engine_loses_no_block_and_changes_no_code(model, prefix_cache):
    """Thirty requests of five kinds on four slots and few blocks, some cancelled, with and without sharing."""
    expected = {index: alone(model, index, 8) for index in range(5)}
    runner = GraphRunner(model, slots=4, blocks=14, max_prefill_tokens=48)
    pool = BlockPool(runner.blocks, prefix_cache=prefix_cache)
    engine = Engine(runner, Scheduler(slots=4, queue_capacity=40, pool=pool))
    engine.start()
    try:
        generations = []
        for number in range(30):
            index, frames = number * 7 % 5, 1 + number % 8
            prompt = prompt_of(index)
            wanted = Request(
                prompt, sampling_of(index), frames, prefill_tokens=len(prompt.tokens), prefix_keys=prompt.prefix_keys()
            )
            generations.append((index, frames, engine.submit(wanted)))
        for _, _, generation in generations[3::9]:
            generation.cancel()
        kept = [one for number, one in enumerate(generations) if number % 9 != 3]
        for index, frames, generation in kept:
            assert lists(await generation.read(20)) == expected[index][:frames]
            assert generation.finish is FinishReason.MAX_LENGTH
    finally:
        await engine.stop(10)
    load = engine.load()
    assert (load.blocks_used, pool.reserved, load.slots_active) == (0, 0, 0)
    assert (load.prefix_hit_tokens > 0) == prefix_cache


async def test_a_voice_that_arrives_with_six_requests_is_prefilled_once(model):
    runner = GraphRunner(model, slots=6, max_prefill_tokens=16)
    rows = []
    embed = runner._embed
    runner._embed = lambda pieces: (rows.extend(stop - start for _, start, stop in pieces), embed(pieces))[1]
    engine = Engine(runner, Scheduler(slots=6, queue_capacity=0, pool=BlockPool(runner.blocks)))
    prompt = prompt_of(4)
    request = Request(prompt, sampling_of(1), 6, prefill_tokens=len(prompt.tokens), prefix_keys=prompt.prefix_keys())
    generations = [engine.submit(request) for _ in range(6)]  # before the engine runs: all are there at once
    engine.start()
    try:
        runs = [lists(await generation.read(6)) for generation in generations]
    finally:
        await engine.stop(10)
    runner = EagerRunner(model, slots=1)
    open_slot(runner, 0, prompt, sampling_of(1))
    assert runs == [[runner.step([0])[0] for _ in range(6)]] * 6
    shared = (len(prompt.tokens) - 1) // 16 * 16
    # one prefills all but the last token, the others what no block holds; each computes the last one in its first step
    assert sum(rows) == shared + 6 * (len(prompt.tokens) - shared)


def test_refusals(model):
    runner = GraphRunner(model, slots=2)
    runner.begin(0, prompt_of(0), Sampling(), own_table(runner, 0))
    for slot in (0, -1, 2):
        with pytest.raises(ValueError, match=f"slot {slot} is not free"):
            runner.begin(slot, prompt_of(0), Sampling(), own_table(runner, 1))


@torch.inference_mode()
def test_padding_leaves_no_trace(model):
    runner = GraphRunner(model, slots=4, batch_buckets=(4,))
    open_slot(runner, 2, prompt_of(0), sampling_of(0))
    before = {name: tensor.clone() for name, tensor in vars(runner._state).items() if name not in ("slots", "numbers")}
    # `numbers` has the tables of a number a slot, each of which has its own name too.
    runner.launch([2])()
    for name, tensor in before.items():
        changed = (
            (getattr(runner._state, name) != tensor).flatten(1).any(1)
            if tensor.ndim > 1
            else (getattr(runner._state, name) != tensor)
        )
        assert set(changed.nonzero().flatten().tolist()) <= ({2, 4} if name == "next_inputs" else {2})


def test_no_batch_is_padded_by_a_tile_or_more_beyond_256_streams():
    sizes = graph_runner._BATCH_BUCKETS
    padding = [min(size for size in sizes if size >= count) - count for count in range(257, 4097)]
    assert max(padding) < 128 and list(sizes) == sorted(set(sizes))
