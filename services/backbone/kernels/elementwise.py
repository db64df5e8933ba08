"""Triton kernels without products: norm with residual, gated activation, sum of embeddings.

All arithmetic is fp32; what is stored is rounded once. reference.py says what they compute.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def _add_norm(x, delta, scale, out, width, part, eps, PARTS: tl.constexpr, WIDTH: tl.constexpr, OVERLAP: tl.constexpr):
    """PARTS: of delta, `part` numbers each; 0 where there is no delta."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, WIDTH)
    inside = columns < width
    scales = tl.load(scale + columns, mask=inside, other=0.0).to(tl.float32)
    if OVERLAP:
        gdc_launch_dependents()
        gdc_wait()
    values = tl.load(x + row * width + columns, mask=inside, other=0.0)
    if PARTS > 0:
        added = tl.load(delta + row * width + columns, mask=inside, other=0.0).to(tl.float32)
        for each in tl.static_range(1, PARTS):
            place = delta + each * part.to(tl.int64) + row * width
            added += tl.load(place + columns, mask=inside, other=0.0).to(tl.float32)
        values += added
        tl.store(x + row * width + columns, values, mask=inside)
    inverse = tl.rsqrt(tl.sum(values * values, axis=0) / width + eps)
    tl.store(out + row * width + columns, (values * inverse * scales).to(out.dtype.element_ty), mask=inside)


def add_norm(x: Tensor, delta: Tensor | None, scale: Tensor, eps: float, overlap: bool = False) -> Tensor:
    out = torch.empty_like(x, dtype=scale.dtype)
    width = x.shape[1]
    parts = 0 if delta is None else 1 if delta.ndim == 2 else len(delta)
    _add_norm[(x.shape[0],)](
        x, x if delta is None else delta, scale, out, width, x.numel(), eps,
        PARTS=parts, WIDTH=triton.next_power_of_2(width), OVERLAP=overlap, num_warps=8, launch_pdl=overlap,
    )  # fmt: skip
    return out


@triton.jit
def _silu_mul(gate_up, out, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    gate = tl.load(gate_up + row * 2 * width + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * width + width + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * width + columns, (gate / (1.0 + tl.exp(-gate)) * up).to(out.dtype.element_ty), mask=inside)


def silu_mul(gate_up: Tensor) -> Tensor:
    count, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty(count, width, device=gate_up.device, dtype=gate_up.dtype)
    _silu_mul[(count, triton.cdiv(width, 1024))](gate_up, out, width, BLOCK=1024, num_warps=4)
    return out


@triton.jit
def _embed_frames(
    codes, embeddings, out, vocab, width, CODEBOOKS: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    codebook = tl.arange(0, PADDED)
    # All codes at once, then all embeddings: in a loop each load would wait for the one before.
    code = tl.load(codes + row * CODEBOOKS + codebook, mask=codebook < CODEBOOKS, other=0)
    at = (code + codebook * vocab)[:, None] * width + columns[None, :]
    inside = (codebook < CODEBOOKS)[:, None] & (columns < width)[None, :]
    total = tl.sum(tl.load(embeddings + at, mask=inside, other=0.0).to(tl.float32), axis=0)
    tl.store(out + row * width + columns, total.to(out.dtype.element_ty), mask=columns < width)


def embed_frames(codes: Tensor, embeddings: Tensor) -> Tensor:
    count, codebooks = codes.shape
    vocab, width = embeddings.shape[1:]
    out = torch.empty(count, width, device=codes.device, dtype=torch.float32)
    block = 64 if count < 64 else 1024  # a small batch needs more programs, a large one longer reads
    _embed_frames[(count, triton.cdiv(width, block))](
        codes, embeddings, out, vocab, width,
        CODEBOOKS=codebooks, PADDED=triton.next_power_of_2(codebooks), BLOCK=block, num_warps=4,
    )  # fmt: skip
    return out
