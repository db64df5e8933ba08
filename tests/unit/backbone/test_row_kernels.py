"""The CUDA C++ kernel of draws against the reference: on a GPU, or run by a CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from services.backbone.kernels import reference, row_kernels
from support import cuda_on_cpu

PTX = (Path(row_kernels.__file__).parent / "row_cuda" / "ptx.cu").read_text()


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request, tmp_path, monkeypatch):
    torch.manual_seed(0)
    if request.param == "cpu":
        if not cuda_on_cpu.CAN_RUN:
            pytest.skip("needs g++ on x86-64")

        def kernel(device):
            source, options = row_kernels.source(), row_kernels.compiler_options()
            library = cuda_on_cpu.compile_for_cpu(source, PTX, options, tmp_path, "draw", "DrawArguments")
            return cuda_on_cpu.Kernel(library, "draw", shared_bytes=0)

        monkeypatch.setattr(row_kernels, "_kernel", kernel)
    return torch.device(request.param)


def test_draws(device):
    """Codes of sampling.py: ties at the k-th, all equal, zeros of both signs, infinities, one token, all tokens."""
    count, codebooks, codebook, bins = 12, 3, 2, row_kernels.BINS
    logits = (torch.randn(count, bins, device=device) * 2).bfloat16()
    logits[3] = 0.0
    logits[4] = -logits[4].abs()
    logits[5, ::2], logits[5, 1::2] = 0.0, -0.0
    logits[8, 100:] = float("-inf")
    logits[9, [5, 77, 1000]] = float("inf")
    logits[10] = float("-inf")
    logits[11] = torch.randn(bins, device=device).bfloat16() * 1e-3 + 8
    temperature = torch.rand(count, device=device) + 0.3
    top_k = torch.tensor([1, 2, 50, 50, 7, 1, 100_000, bins, 300, 50, 3, 64], device=device)
    seeds = torch.randint(-(2**62), 2**62, (count,), device=device)
    frames = torch.randint(0, 2000, (count,), device=device)
    embeddings = torch.randn(codebooks, bins + 3, 1024, device=device).bfloat16()
    drawn = []
    for draw in (reference.sample, row_kernels.draw):
        codes = torch.full((count, codebooks), -1, device=device)
        rows = torch.full((count, 1024), float("nan"), device=device)
        draw(logits, temperature, top_k, seeds, frames, codebook, codes, embeddings, rows)
        assert (codes[:, :codebook] == -1).all()
        assert torch.equal(rows, embeddings[codebook, codes[:, codebook]].float())
        drawn.append(codes[:, codebook].tolist())
    assert drawn[0] == drawn[1]
