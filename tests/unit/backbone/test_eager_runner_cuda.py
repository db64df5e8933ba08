"""The eager runner on a CUDA device: the same noise, the same codes, batched equals alone, one copy in memory."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from models.bundle import load_bundle
from services.backbone.eager_runner import EagerRunner
from services.backbone.model import build_model, init_random
from services.backbone.noise import gumbel
from services.backbone.prompt import Audio, PromptLimits, Text
from services.backbone.request import Sampling
from services.backbone.weights import load_model, save_sesame
from support.backbone_slots import open_slot

pytestmark = pytest.mark.gpu
PART = load_bundle("embedded").generator


@pytest.fixture(scope="module")
def models():
    """The embedded shapes in fp32: the same weights on both devices."""
    return {device: init_random(build_model(PART), seed=4).to(device) for device in ("cpu", "cuda")}


def prompt_of(index):
    limits = PromptLimits(PART.codebooks, PART.text_vocab_size, PART.audio_vocab_size - 3, PART.backbone.max_seq_len)
    audio = Audio([[(17 * row + codebook) % 1024 for codebook in range(PART.codebooks)] for row in range(40)])
    return limits.build([Text(range(1, 9 + index)), audio, Text([3, 2, 1])])[0]


def begin(runner, slot, index, sampling):
    open_slot(runner, slot, prompt_of(index), sampling)


def alone(model, index, sampling, frames):
    runner = EagerRunner(model, slots=4, batch_size=4)
    begin(runner, 2, index, sampling)
    return [runner.step([2])[0] for _ in range(frames)]


def test_noise_has_the_same_bits_as_on_the_cpu():
    arguments = [1, 2**64 - 1, 12345], [0, 77, 1124], 32, 2048
    on_cpu = gumbel(*arguments, torch.device("cpu"))
    assert torch.equal(gumbel(*arguments, torch.device("cuda")).cpu(), on_cpu)


@pytest.mark.parametrize("sampling", [Sampling(top_k=1), Sampling(seed=3)], ids=["greedy", "sampled"])
def test_codes_equal_those_of_the_cpu(models, sampling):
    assert alone(models["cuda"], 0, sampling, 20) == alone(models["cpu"], 0, sampling, 20)


@pytest.mark.parametrize("top_k", [1, 50])
def test_batched_equals_alone(models, top_k):
    def sampling(index):
        return Sampling(top_k=top_k, seed=index)

    expected = [alone(models["cuda"], index, sampling(index), 12 - index) for index in range(6)]
    runner = EagerRunner(models["cuda"], slots=6, batch_size=4)  # two blocks
    together = [[] for _ in range(6)]
    for turn in range(12):
        if turn < 6:
            begin(runner, turn, turn, sampling(turn))
        slots = list(range(min(turn + 1, 6)))[::-1]
        for slot, codes in zip(slots, runner.step(slots), strict=True):
            together[slot].append(codes)
    assert together == expected


@pytest.mark.slow
def test_full_csm_1b_loads_to_the_device_and_generates(tmp_path):
    """Sesame's layout in bf16, 3.1 GB: the device never holds a second copy."""
    source = {"layout": "sesame", "config": "config.json", "weights": ["model.safetensors"]}
    part = dataclasses.replace(load_bundle("csm-1b").generator, folder=Path(tmp_path), sources=(source,))
    save_sesame(init_random(build_model(part), 1), tmp_path, torch.bfloat16)
    size = sum(tensor.numel() for tensor in build_model(part).state_dict().values()) * 2
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    model = load_model(part, "cuda", torch.bfloat16)
    assert torch.cuda.max_memory_allocated() - before < size + 0.6e9  # the greatest tensor is 0.53 GB
    runner = EagerRunner(model, slots=2, batch_size=2)
    limits = PromptLimits(32, part.text_vocab_size, 2048, part.backbone.max_seq_len)
    open_slot(runner, 0, limits.build([Text(range(1, 300))])[0], Sampling())
    frames = [runner.step([0])[0] for _ in range(5)]
    assert all(len(frame) == 32 and max(frame) < 2048 for frame in frames)
    assert len({tuple(frame) for frame in frames}) == 5
