"""The persistent kernel against its twin, depth_decoder.DepthDecoder in fp32, for each batch size; and under churn."""

from __future__ import annotations

import copy
import dataclasses
import random
from functools import cache, partial

import pytest
import torch

from services.backbone.blocks import BlockPool
from services.backbone.depth_decoder import DepthDecoder
from services.backbone.engine import Engine
from services.backbone.frame_step import FrameStep, SlotState
from services.backbone.frame_stream import StreamAborted
from services.backbone.graph_runner import GraphRunner, kernel_plan_for
from services.backbone.kernels import operations_for, reference
from services.backbone.kernels.persistent import MAX_BATCH, supports
from services.backbone.model import build_model, init_random
from services.backbone.request import Request, Sampling
from services.backbone.scheduler import Scheduler
from support.backbone_engines import lists
from support.generator_parts import CSM_1B, NARROW, prompt_of

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")
# All of the depth decoder, and of the backbone no more than there must be
DEPTH = dataclasses.replace(CSM_1B, text_vocab_size=96, backbone=dataclasses.replace(CSM_1B.backbone, layers=1))
BATCHES = (1, 2, 3, 4, 8, 9, 13, MAX_BATCH)


@cache
def frame_step():
    """(the model in fp32, the frame step in bf16), the same weights."""
    model = init_random(build_model(DEPTH), seed=4).to(torch.bfloat16).to(CUDA)
    exact = copy.deepcopy(model).float()
    state = SlotState(model, MAX_BATCH, padding_block=MAX_BATCH)
    return exact, FrameStep(model, state, blocks=MAX_BATCH + 1, max_batch=MAX_BATCH, operations=operations_for(CUDA))


@pytest.fixture(autouse=True)
def supported():
    if not torch.cuda.is_available() or not supports(DEPTH, torch.bfloat16, CUDA):
        pytest.skip("needs a Hopper GPU")


def sampling_of(batch):
    """temperature, top_k, seeds, frames of more slots than the batch has; and its slots."""
    count = batch + 3
    top_k = torch.tensor([50, 1, 2, 2048, 5000, 50, 300] * 3, device=CUDA)[:count]
    temperature = torch.rand(count, device=CUDA) + 0.5
    seeds, frames = torch.randint(-(2**62), 2**62, (count,), device=CUDA), torch.randint(0, 2000, (count,), device=CUDA)
    return (temperature, top_k, seeds, frames), torch.randperm(count, device=CUDA)[:batch].contiguous()


@pytest.mark.parametrize("batch", BATCHES)
@torch.inference_mode()
def test_against_the_twin(batch):
    """Logits within the bound of test_teacher_forced_logits, the codes what sampling.py draws from them, always alike."""
    torch.manual_seed(batch)
    exact, step = frame_step()
    kernel, decoder = step._depth_kernel(batch), DepthDecoder(exact, batch)
    hidden = torch.randn(batch, DEPTH.backbone.dim, device=CUDA).bfloat16()
    tables, slots = sampling_of(batch)
    codes, bins = torch.full((batch, DEPTH.codebooks), -1, device=CUDA), DEPTH.audio_vocab_size - 3

    def twin_logits(forced):
        seen = []

        def choose(codebook, logits):
            seen.append(logits[:, :bins])
            return forced[:, codebook]

        decoder.decode(hidden.float(), choose)
        return torch.stack(seen)

    for _ in range(2):
        forced = torch.randint(0, bins, codes.shape, device=CUDA)
        kernel.decode(hidden, slots, *tables, codes, forced=forced)
        theirs = twin_logits(forced)
        errors = (kernel.logits - theirs).flatten(2).norm(dim=2) / theirs.norm(dim=2)
        assert torch.equal(codes, forced) and errors.max() < 1.5e-2
    kernel.decode(hidden, slots, *tables, codes)
    first, logits, drawn = codes.clone(), kernel.logits, torch.zeros_like(codes)
    temperature, top_k, seeds, frames = (table[slots] for table in tables)
    for codebook in range(DEPTH.codebooks):
        reference.sample(logits[codebook], temperature, top_k, seeds, frames, codebook, drawn)
    assert torch.equal(first, drawn)
    theirs = twin_logits(codes)
    assert (logits - theirs).norm() / theirs.norm() < 1e-2
    for _ in range(30):
        codes.fill_(-1)
        kernel.decode(hidden, slots, *tables, codes)
        assert torch.equal(codes, first) and torch.equal(kernel.logits, logits)


@torch.inference_mode()
def test_ties_at_the_kth_are_kept_and_values_that_are_not_finite_end():
    """A head of zeros ties all codes: any may be drawn. Infinite inputs give codes, not a kernel that waits for them."""
    _, step = frame_step()
    kernel, (tables, slots) = step._depth_kernel(2), sampling_of(2)
    codes = torch.full((2, DEPTH.codebooks), -1, device=CUDA)
    tables[1].fill_(2)
    kernel.decode(torch.zeros(2, DEPTH.backbone.dim, device=CUDA).bfloat16(), slots, *tables, codes)
    assert (kernel.logits[0] == 0).all()
    drawn = torch.zeros_like(codes)
    of_slots = [table[slots] for table in tables]
    reference.sample(kernel.logits[0], of_slots[0], of_slots[1], of_slots[2], of_slots[3], 0, drawn)
    assert torch.equal(codes[:, 0], drawn[:, 0])
    for bad in (float("inf"), float("nan")):
        kernel.decode(torch.full((2, DEPTH.backbone.dim), bad, device=CUDA).bfloat16(), slots, *tables, codes)
        torch.cuda.synchronize()
        assert codes.min() >= 0 and codes.max() < 2048


async def test_churn():
    """10,000 frames in captured batches of 1 to 16, requests coming, leaving and being cancelled."""
    model = init_random(build_model(NARROW), seed=4).to(torch.bfloat16).to(CUDA)
    plan = partial(kernel_plan_for, persistent_depth=True)
    runner = GraphRunner(
        model, slots=16, blocks=400, max_prefill_tokens=64, batch_buckets=(1, 2, 4, 8), kernel_plan=plan
    )  # fmt: skip
    runner.warm_up()
    pool = BlockPool(runner.blocks)
    engine = Engine(runner, Scheduler(slots=16, queue_capacity=100, pool=pool))
    engine.start()
    chance, frames, values = random.Random(3), 0, set()
    try:
        while frames < 10_000:
            streams = []
            for _ in range(chance.choice((1, 3, 40))):
                prompt, length = prompt_of(NARROW, chance.randrange(5)), chance.randrange(1, 60)
                request = Request(
                    prompt, Sampling(seed=chance.randrange(2**64)), length,
                    prefill_tokens=len(prompt.tokens), prefix_keys=prompt.prefix_keys(),
                )  # fmt: skip
                streams.append((length, chance.random() < 0.2, engine.submit(request)))
            for length, leaves, stream in streams:
                codes = lists(await stream.read(length // 2 + 1 if leaves else length))
                frames += len(codes)
                values.update(max(frame) for frame in codes)
                if leaves:
                    stream.cancel()
                    with pytest.raises(StreamAborted):
                        while await stream.read(1):
                            pass
                        raise StreamAborted(stream.finish)
    finally:
        await engine.stop(10)
    assert max(values) < 2048 and len(values) > 100
    assert (pool.used, pool.reserved, runner._slots) == (0, 0, {})
