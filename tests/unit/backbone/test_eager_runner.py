"""The eager runner: batched equals alone, resumed equals unbroken, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from models.bundle import GeneratorPart, LlamaShape, load_bundle
from services.backbone.blocks import BlockPool
from services.backbone.eager_runner import EagerRunner
from services.backbone.model import build_model, init_random
from services.backbone.prompt import Audio, Prompt, PromptLimits, Text
from services.backbone.request import Sampling
from support.backbone_slots import open_slot, own_table, read_prompt

TINY = GeneratorPart(
    text_vocab_size=96,
    audio_vocab_size=67,
    codebooks=32,
    backbone=LlamaShape(layers=2, heads=4, kv_heads=2, dim=64, intermediate_dim=160, max_seq_len=160),
    decoder=LlamaShape(layers=2, heads=2, kv_heads=1, dim=32, intermediate_dim=96, max_seq_len=33),
    sources=(),
    folder=Path(),
)
PARTS = {"tiny": TINY, "embedded": load_bundle("embedded").generator}


@pytest.fixture(scope="module", params=PARTS.values(), ids=PARTS.keys())
def model(request):
    return init_random(build_model(request.param), seed=4)


def prompt_of(model, index: int, generated=()):
    """Prompts of different lengths, some with audio, some longer than a prefill piece."""
    part = model.part
    random = np.random.default_rng(index)
    limits = PromptLimits(part.codebooks, part.text_vocab_size, part.audio_vocab_size - 3, part.backbone.max_seq_len)
    parts = [Text(random.integers(1, part.text_vocab_size, 3 + 7 * index).tolist())]
    if index % 2:
        frames = random.integers(0, part.audio_vocab_size - 3, (20, part.codebooks)).tolist()
        parts = [parts[0], Audio(frames), Text([1, 2, 3])]
    return limits.build(parts, generated)[0]


def sampling_of(index: int, greedy: bool) -> Sampling:
    return Sampling(temperature=0.8 + 0.1 * index, top_k=1 if greedy else 10 * (index + 1), seed=index * 12345)


def generate(runner, slot, prompt, sampling, frames):
    open_slot(runner, slot, prompt, sampling)
    codes = [runner.step([slot])[0] for _ in range(frames)]
    runner.release(slot)
    return codes


@pytest.mark.parametrize("greedy", [True, False], ids=["greedy", "sampled"])
def test_batched_equals_alone_with_staggered_joins_and_leaves(model, greedy):
    # request → (round it joins, frames it stays); at a batch size of three, rows change places too
    lives = {0: (0, 14), 1: (2, 5), 2: (3, 11), 3: (3, 2), 4: (6, 9), 5: (9, 6)}
    alone = {}
    for index, (_, frames) in lives.items():
        solo = EagerRunner(model, slots=3, batch_size=3, max_prefill_tokens=16)
        alone[index] = generate(solo, 0, prompt_of(model, index), sampling_of(index, greedy), frames)

    runner = EagerRunner(model, slots=5, batch_size=3, max_prefill_tokens=16)
    free, slots, filling, together = [3, 1, 4, 0, 2], {}, set(), {index: [] for index in lives}
    turn = 0
    while any(len(together[index]) < frames for index, (_, frames) in lives.items()):
        for index, (joins, _) in lives.items():
            if joins <= turn and index not in slots and not together[index] and free:
                slots[index] = free.pop()
                filling.add(index)
                runner.begin(
                    slots[index], prompt_of(model, index), sampling_of(index, greedy), own_table(runner, slots[index])
                )
        for index in sorted(filling):  # one piece a round, between the others' steps
            if runner.prefill([slots[index]]):
                filling.discard(index)
        stepping = [index for index in slots if index not in filling]
        if stepping:
            for index, codes in zip(stepping, runner.step([slots[i] for i in stepping]), strict=True):
                together[index].append(codes)
                if len(together[index]) == lives[index][1]:
                    runner.release(slots[index])
                    free.append(slots.pop(index))
        turn += 1
    assert together == alone
    assert len({tuple(codes) for frames in alone.values() for codes in frames}) > 30  # not one frame over and over


@torch.inference_mode()
def test_a_row_has_the_same_bits_anywhere_in_a_batch(model):
    """Why the above holds: at one batch size a row's result depends neither on its place nor on the other rows."""
    runner = EagerRunner(model, slots=4, batch_size=4)
    torch.manual_seed(1)
    row = torch.randn(model.part.backbone.dim)
    seen = set()
    for place in range(4):
        rows = torch.randn(4, model.part.backbone.dim)
        rows[place] = row
        positions = torch.randint(0, 100, (4,))
        positions[place] = 50
        runner._step.inputs.copy_(rows)
        rotation = runner._backbone.rope[positions].unsqueeze(1)
        hidden = runner._step.run(rotation, lambda layer, q, kv: q * 2)
        codebook_logits = []

        def pick(codebook, logits, place=place, codebook_logits=codebook_logits):
            codebook_logits.append(logits[place])
            return logits[:, :64].argmax(-1)

        runner._depth.decode(hidden, pick)
        seen.add(torch.cat([hidden[place], *codebook_logits]).numpy().tobytes())
    assert len(seen) == 1


@pytest.mark.parametrize("greedy", [True, False], ids=["greedy", "sampled"])
@pytest.mark.parametrize("broken_at", [1, 9])
def test_a_resumed_stream_goes_on_as_the_unbroken_one(model, greedy, broken_at):
    whole = generate(EagerRunner(model, slots=2, batch_size=2), 0, prompt_of(model, 3), sampling_of(3, greedy), 20)
    resumed = generate(
        EagerRunner(model, slots=2, batch_size=2),
        1,
        prompt_of(model, 3, whole[:broken_at]),
        sampling_of(3, greedy),
        20 - broken_at,
    )
    assert resumed == whole[broken_at:]


@pytest.mark.parametrize("shuffled", [False, True], ids=["in order", "blocks in any order"])
def test_a_shared_prefix_changes_no_code(model, shuffled):
    """Three requests that begin alike, one after another and two at once, in blocks that others used before."""
    part, frames = model.part, 6
    random = np.random.default_rng(2)
    limits = PromptLimits(part.codebooks, part.text_vocab_size, part.audio_vocab_size - 3, part.backbone.max_seq_len)
    voice = Audio(random.integers(0, part.audio_vocab_size - 3, (72, part.codebooks)).tolist())
    prompts = [limits.build([Text([4, 5]), voice, Text([6] * length)])[0] for length in (3, 3, 40)]
    samplings = [Sampling(seed=index) for index in range(3)]
    alone = [
        generate(EagerRunner(model, slots=3, batch_size=3, max_prefill_tokens=32), 0, prompt, sampling, frames)
        for prompt, sampling in zip(prompts, samplings, strict=True)
    ]
    pool = BlockPool(30)
    runner = EagerRunner(model, slots=3, blocks=30, batch_size=3, max_prefill_tokens=32)
    if shuffled:
        random.shuffle(pool._free)
    pieces, tables, together = [], [], []
    for slot, (prompt, sampling) in enumerate(zip(prompts, samplings, strict=True)):
        rows = len(prompt.tokens)
        table = pool.open(rows, rows + frames, prompt.prefix_keys().keys)
        pool.grow(table, rows + frames)
        runner.begin(slot, prompt, sampling, table)
        pieces.append(1)
        while not runner.prefill([slot]):
            pieces[-1] += 1
        pool.publish(table, prompt.prefix_keys().keys, rows - 1)
        tables.append(table)
        together.append([])
        for each, codes in enumerate(runner.step(range(slot + 1))):
            together[each].append(codes)
    assert [table.cached_tokens for table in tables] == [0, 64, 64]
    assert pieces == [3, 1, 2]  # 78 and 115 tokens: the 64 shared ones are not prefilled again
    assert tables[1].blocks[:4] == tables[0].blocks[:4]
    while len(together[2]) < frames:
        for each, codes in enumerate(runner.step(range(3))):
            together[each].append(codes)
    assert [codes[:frames] for codes in together] == alone


def test_codes_vary_stay_below_the_bins_and_do_not_end_at_once(model):
    """What the random bundle must do: not fall silent, not repeat one frame, also greedily."""
    for sampling in (Sampling(top_k=1), Sampling(seed=5)):
        frames = np.array(generate(EagerRunner(model, slots=1), 0, prompt_of(model, 1), sampling, 30))
        assert frames.min() >= 0 and frames.max() < model.part.audio_vocab_size - 3
        assert frames.any(axis=1).all()
        assert len(np.unique(frames, axis=0)) >= 25


def test_seeds_matter_and_repeat(model):
    runner = EagerRunner(model, slots=1)
    first, again, other = (generate(runner, 0, prompt_of(model, 0), Sampling(seed=seed), 5) for seed in (1, 1, 2))
    assert first == again != other


def test_a_slot_remembers_nothing_of_its_last_owner(model):
    runner = EagerRunner(model, slots=1)
    fresh = generate(runner, 0, prompt_of(model, 0), Sampling(seed=1), 5)
    generate(runner, 0, prompt_of(model, 5), Sampling(seed=9), 7)
    assert generate(runner, 0, prompt_of(model, 0), Sampling(seed=1), 5) == fresh


def test_prefill_is_bounded(model):
    runner = EagerRunner(model, slots=1, max_prefill_tokens=16)
    prompt = prompt_of(model, 5)  # 38 + 21 + 3 tokens: four pieces of 16 hold all but the last
    assert len(prompt.tokens) == 62
    runner.begin(0, prompt, Sampling(), own_table(runner, 0))
    assert [runner.prefill([0]) for _ in range(4)] == [[], [], [], [0]]


def test_refusals():
    model = init_random(build_model(TINY), seed=4)
    runner = EagerRunner(model, slots=2)
    prompt = prompt_of(model, 0)
    runner.begin(0, prompt, Sampling(), own_table(runner, 0))
    for slot in (0, -1, 2):
        with pytest.raises(ValueError, match=f"slot {slot} is not free"):
            runner.begin(slot, prompt, Sampling(), own_table(runner, slot))
    limits = PromptLimits(32, 96, 64, max_seq_len=1000)
    with pytest.raises(ValueError, match="prompt of 161 tokens, 160 fit"):
        runner.begin(1, limits.build([Text([1] * 161)])[0], Sampling(), own_table(runner, 1))
    runner.begin(1, limits.build([Text([1] * 160)])[0], Sampling(), own_table(runner, 1))
    read_prompt(runner, 1)
    runner.step([1])  # the last token predicts a frame, which has no position left
    with pytest.raises(ValueError, match="no position left of 160"):
        runner.step([1])


def test_warm_up_leaves_no_trace(model):
    runner = EagerRunner(model, slots=1)
    cold = generate(runner, 0, prompt_of(model, 0), Sampling(seed=1), 3)
    runner.warm_up()
    assert generate(runner, 0, prompt_of(model, 0), Sampling(seed=1), 3) == cold


@pytest.mark.parametrize("cut", [16, 48, 64, 80, 112])
def test_a_prefix_hit_at_any_block_changes_no_bit_of_the_cache(model, cut):
    """The rest of a prompt behind `cut` cached tokens, against the whole of it; up to three tokens are left alone."""
    part = model.part
    random = np.random.default_rng(cut)
    limits = PromptLimits(part.codebooks, part.text_vocab_size, part.audio_vocab_size - 3, part.backbone.max_seq_len)
    for extra in (1, 2, 3, 30):
        audio = Audio(random.integers(0, part.audio_vocab_size - 3, (cut + extra - 3, part.codebooks)).tolist())
        prompt = limits.build([Text([1, 2]), audio, Text([5])])[0]
        assert len(prompt.tokens) == cut + extra + 1  # the last token is left to the first step
        caches = []
        for cached in (0, cut):
            runner = EagerRunner(model, slots=1, max_prefill_tokens=64)
            if cached:
                start = Prompt(prompt.tokens[: cached + 1], prompt.mask[: cached + 1], cached + 1, 0)
                open_slot(runner, 0, start, Sampling())
                runner.release(0)
            table = own_table(runner, 0)
            table.cached_tokens = cached
            runner.begin(0, prompt, Sampling(), table)
            read_prompt(runner, 0)
            blocks = torch.tensor(table.blocks)
            caches.append([runner._cache.read(layer, blocks, cut + extra) for layer in range(part.backbone.layers)])
        for whole, hit in zip(*caches, strict=True):
            assert torch.equal(whole[0], hit[0]) and torch.equal(whole[1], hit[1])
