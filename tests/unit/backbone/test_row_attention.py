"""The CUDA C++ kernel of a step's attention against the reference: on a GPU, or run by a CPU."""

from __future__ import annotations

import pytest
import torch

from models.bundle import LlamaShape
from services.backbone.blocks import BLOCK_TOKENS
from services.backbone.kernels import reference, row_attention
from services.backbone.kernels.row_attention import HEAD_DIM, HEADS, KV_HEADS
from services.backbone.kernels.wgmma import SOURCES
from services.backbone.model import rope_table
from support import cuda_on_cpu

# First position, ends and beginnings of blocks, of pairs of blocks, and of what a warp lists of the table at once.
POSITIONS = [0, 1, 7, 8, 15, 16, 17, 31, 32, 47, 48, 100, 430, 511, 512, 513, 530, 1030, 1040, 2047]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request, tmp_path, monkeypatch):
    torch.manual_seed(0)
    if request.param == "cpu":
        if not cuda_on_cpu.CAN_RUN:
            pytest.skip("needs g++ on x86-64")

        def kernel(device):
            ptx = (SOURCES / "ptx.cu").read_text()
            options = [*row_attention.compiler_options(), "-DROW_BLOCKS=1", "-DOUTPUT_BLOCKS=1", "-DGROUPS=1"]
            names = "attend_step", "AttendArguments", "tiles.h"
            library = cuda_on_cpu.compile_for_cpu(row_attention.source(), ptx, options, tmp_path, *names)
            return cuda_on_cpu.Kernel(library, "attend_step", shared_bytes=0)

        monkeypatch.setattr(row_attention, "_kernel", kernel)
        monkeypatch.setattr(row_attention, "tensor_map", cuda_on_cpu.tensor_map)
    return torch.device(request.param)


def test_attends(device):
    """Of rows at all kinds of positions; what is behind them in their last block is NaN, which reaches no row."""
    count, width = len(POSITIONS), 128
    positions = torch.tensor(POSITIONS, device=device)
    blocks = count * width
    shape = LlamaShape(
        layers=1, heads=HEADS, kv_heads=KV_HEADS, dim=HEADS * HEAD_DIM, intermediate_dim=64, max_seq_len=2048
    )
    rope = torch.view_as_real(rope_table(shape, device)).flatten(1).contiguous()
    tables = torch.randperm(blocks, device=device).view(count, width).int()
    slots = torch.randperm(count, device=device)
    size = (KV_HEADS, blocks, BLOCK_TOKENS, HEAD_DIM)
    ours = [torch.randn(size, device=device).bfloat16() * scale for scale in (2, 1)]
    for slot, position in zip(slots.tolist(), POSITIONS, strict=True):
        block = tables[slot, position // BLOCK_TOKENS].long()
        for cache in ours:
            cache[:, block, position % BLOCK_TOKENS :] = float("nan")
    theirs = [cache.clone() for cache in ours]
    qkv = torch.randn(count, (HEADS + 2 * KV_HEADS) * HEAD_DIM, device=device).bfloat16()
    got = row_attention.attend(qkv, rope, slots, positions, tables, *ours, overlap=device.type == "cuda")
    wanted = reference.step_attend(
        qkv, rope, slots, positions, tables, *(cache.nan_to_num_() for cache in theirs), HEADS
    )
    for row in range(count):
        error = (got[row].double() - wanted[row].double()).norm() / wanted[row].double().norm()
        assert error < 1e-2, (POSITIONS[row], error)
    for mine, other in zip(ours, theirs, strict=True):  # each row's key and value, and nothing else
        assert torch.equal(mine.nan_to_num(), other)
