"""Random conversations through the engine and its prefix cache, against a model that has no cache at all.

The plain model is torchtune's own forward over the whole sequence, once for every frame, as Sesame writes
it. Turns are cut, run at the same time as other conversations', and in one case more is said than the cache
holds, so that blocks are evicted. Codes must be equal, no block may be lost, and a turn may prefill no more
than its new tokens and less than one block.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from services.backbone.blocks import BLOCK_TOKENS, BlockPool
from services.backbone.eager_runner import EagerRunner
from services.backbone.engine import Engine
from services.backbone.graph_runner import GraphRunner
from services.backbone.model import build_model, init_random
from services.backbone.noise import gumbel
from services.backbone.prompt import Audio, PromptLimits, Text
from services.backbone.request import Request, Sampling
from services.backbone.sampling import sample
from services.backbone.scheduler import Scheduler
from support.backbone_engines import lists
from support.tiny_csm import tiny_part

PART = tiny_part(codebooks=4)
LIMITS = PromptLimits(4, PART.text_vocab_size, PART.audio_vocab_size - 3, PART.backbone.max_seq_len)
RUNNERS = {
    "eager": lambda model, blocks: EagerRunner(model, slots=4, blocks=blocks, batch_size=4, max_prefill_tokens=32),
    "graph": lambda model, blocks: GraphRunner(model, slots=4, blocks=blocks, max_prefill_tokens=48),
}


@pytest.fixture(scope="module")
def plain():
    """A model of its own, whose weights no runner has fused."""
    model = init_random(build_model(PART), seed=11)
    for layer in [*model.backbone.layers, *model.decoder.layers]:
        layer.attn.pos_embeddings.rope_init()  # built on the meta device, it skipped its table
    return model


@torch.inference_mode()
def plain_frames(model, prompt, sampling: Sampling, count: int) -> list[list[int]]:
    """Frames without any cache: every frame computes the whole sequence, every codebook the whole frame."""
    bins, frames = PART.audio_vocab_size - 3, []
    embedded = model.embed_tokens(torch.from_numpy(prompt.tokens), torch.from_numpy(prompt.mask))
    temperature, top_k = torch.tensor([[sampling.temperature]]), torch.tensor([[sampling.top_k]])
    for index in range(count):
        noise = gumbel([sampling.seed], [index], PART.codebooks, bins, torch.device("cpu"))
        hidden = model.backbone(embedded.unsqueeze(0))[0, -1:]
        codes = [sample(model.codebook0_head(hidden), temperature, top_k, sampling.top_k, noise[:, 0])]
        inputs = hidden
        for codebook in range(1, PART.codebooks):
            inputs = torch.cat([inputs, model.embed_code(codebook - 1, codes[-1])])
            out = model.decoder(model.projection(inputs).unsqueeze(0))[0, -1:]
            logits = out @ model.audio_head[codebook - 1]
            codes.append(sample(logits, temperature, top_k, sampling.top_k, noise[:, codebook]))
        frames.append([int(code) for code in codes])
        embedded = torch.cat([embedded, model.embed_frames(torch.tensor(frames[-1:]))])
    return frames


@dataclass
class Turn:
    prompt: object
    sampling: Sampling
    frames: list[list[int]]


@dataclass
class Conversation:
    """One conversation: its parts so far, and how many of their tokens the server has computed."""

    chance: random.Random
    parts: list = field(default_factory=list)
    computed: int = 0
    turns: list[Turn] = field(default_factory=list)

    def ids(self, least: int, most: int) -> Text:
        return Text([self.chance.randrange(1, 90) for _ in range(self.chance.randint(least, most))])

    async def run(self, engine: Engine, turns: int, evicts: bool) -> None:
        for _ in range(turns):
            if self.chance.random() < 0.4:  # the other party's turn
                codes = [[self.chance.randrange(64) for _ in range(4)] for _ in range(self.chance.randint(1, 20))]
                self.parts += [self.ids(1, 5), Audio(codes)]
            self.parts.append(self.ids(1, 8))
            wanted = self.chance.randint(1, 24)
            try:
                prompt, cap = LIMITS.build(self.parts, (), wanted)
            except ValueError:
                return  # no room is left
            sampling = Sampling(0.9, self.chance.choice([1, 5, 50]), self.chance.randrange(2**64))
            generation = engine.submit(
                Request(prompt, sampling, cap, prefill_tokens=len(prompt.tokens), prefix_keys=prompt.prefix_keys())
            )
            await generation.prefilled()
            prefilled = len(prompt.tokens) - generation.seq.table.cached_tokens
            if not evicts:
                assert prefilled < len(prompt.tokens) - self.computed + BLOCK_TOKENS
            frames = lists(await generation.read(self.chance.randint(1, cap)))
            if self.chance.random() < 0.3:  # heard to the end, though cut later
                while more := await generation.read(8):
                    frames += lists(more)
            generation.cancel()
            heard = self.chance.randint(1, len(frames))
            self.turns.append(Turn(prompt, sampling, frames))
            self.parts.append(Audio(frames[:heard]))
            self.computed = len(prompt.tokens) + min(heard, len(frames) - 1)


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize(("blocks", "seed"), [(64, 1), (64, 2), (20, 3)], ids=["one", "two", "with eviction"])
async def test_conversations_equal_a_model_without_a_cache(plain, runner, blocks, seed):
    made = RUNNERS[runner](init_random(build_model(PART), seed=11), blocks)
    pool = BlockPool(blocks)
    engine = Engine(made, Scheduler(slots=4, queue_capacity=8, pool=pool))
    engine.start()
    conversations = [Conversation(random.Random(f"{seed} {number}")) for number in range(3)]
    try:
        await asyncio.gather(*(each.run(engine, 8, evicts=blocks < 40) for each in conversations))
    finally:
        await engine.stop(10)
    assert (pool.used, pool.reserved, engine.load().slots_active) == (0, 0, 0)
    assert pool.idle + len(pool._free) == blocks and len(set(pool._key_of.values())) == len(pool._key_of) == pool.idle
    turns = [turn for each in conversations for turn in each.turns]
    assert len(turns) >= 12 and pool.prefix_hit_tokens > pool.prompt_tokens * (0.2 if blocks < 40 else 0.5)
    for turn in turns:
        assert plain_frames(plain, turn.prompt, turn.sampling, len(turn.frames)) == turn.frames
    assert len(np.unique([frame for turn in turns for frame in turn.frames], axis=0)) > 50
