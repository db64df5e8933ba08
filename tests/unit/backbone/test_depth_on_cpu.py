"""The persistent kernel's source on a CPU against its twin, as tests/gpu/test_persistent_depth.py has it on a GPU."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import pytest
import torch

from services.backbone.depth_decoder import DepthDecoder
from services.backbone.frame_step import FrameStep, SlotState
from services.backbone.kernels import persistent, reference
from services.backbone.model import build_model, init_random
from support import cuda_on_cpu
from support.generator_parts import CSM_1B

PTX = (Path(persistent.__file__).parent / "depth_cuda" / "ptx.cu").read_text()


@pytest.mark.slow
@pytest.mark.skipif(not cuda_on_cpu.CAN_RUN, reason="needs g++ on x86-64")
@pytest.mark.parametrize(("batch", "codebooks"), [(1, 3), (2, 2), (8, 2), (13, 2)])
@torch.inference_mode()
def test_against_the_twin(batch, codebooks, tmp_path, monkeypatch):
    """Logits within the GPU test's bound, the codes those that are drawn from them, the same from launch to launch."""

    def compiled(source, name, options):
        return cuda_on_cpu.compile_for_cpu(source, PTX, options, tmp_path)

    monkeypatch.setattr(persistent, "compile_cuda", compiled)
    monkeypatch.setattr(persistent, "Kernel", cuda_on_cpu.Kernel)
    small = {name: dataclasses.replace(getattr(CSM_1B, name), layers=1) for name in ("backbone", "decoder")}
    part = dataclasses.replace(CSM_1B, text_vocab_size=96, codebooks=codebooks, **small)
    model = init_random(build_model(part), seed=4).to(torch.bfloat16)
    exact = copy.deepcopy(model).float()
    state = SlotState(model, batch, padding_block=batch)
    step = FrameStep(model, state, blocks=batch + 1, max_batch=batch, operations=reference)
    kernel, decoder, bins = step._depth_kernel(batch), DepthDecoder(exact, batch), part.audio_vocab_size - 3

    torch.manual_seed(batch)
    hidden, slots = torch.randn(batch, part.backbone.dim).bfloat16(), torch.randperm(batch + 3)[:batch].contiguous()
    top_k = torch.tensor([50, 1, 2, 2048, 5000, 50, 300] * 3)[: batch + 3]
    temperature, frames = torch.rand(batch + 3) + 0.5, torch.randint(0, 2000, (batch + 3,))
    tables = (temperature, top_k, torch.randint(-(2**62), 2**62, (batch + 3,)), frames)
    codes = torch.full((batch, codebooks), -1)

    kernel.decode(hidden, slots, *tables, codes)
    first, logits, drawn, seen = codes.clone(), kernel.logits, torch.zeros_like(codes), []
    for codebook in range(codebooks):
        reference.sample(logits[codebook], *(table[slots] for table in tables), codebook, drawn)
    assert torch.equal(first, drawn)

    def choose(codebook, row_logits):
        seen.append(row_logits[:, :bins])
        return first[:, codebook]

    decoder.decode(hidden.float(), choose)
    theirs = torch.stack(seen)
    assert ((logits - theirs).flatten(2).norm(dim=2) / theirs.norm(dim=2)).max() < 1.5e-2
    codes.fill_(-1)
    kernel.decode(hidden, slots, *tables, codes)
    assert torch.equal(codes, first) and torch.equal(kernel.logits, logits)
