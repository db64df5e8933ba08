"""What lies between Kokoro's convolutions, as two Triton kernels: masked moments, and scale + shift + activation + mask.

In plain torch these are a dozen passes over the largest tensors, several in fp32. `agree` compares them with the plain
functions on the device at hand; torch.compile was tried, and recompiled for every stride.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, SPLITS = 64, 64


@triton.jit
def _moments(x, mask, out, frames, channels, per_split, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    b, split, block = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    c = block * CHANNELS + tl.arange(0, CHANNELS)
    total = tl.zeros((CHANNELS,), tl.float32)
    square = tl.zeros((CHANNELS,), tl.float32)
    for at in range(split * per_split, (split + 1) * per_split, ROWS):
        t = at + tl.arange(0, ROWS)
        inside = (t < frames)[:, None] & (c < channels)[None, :]
        row = (b * frames + t).to(tl.int64)
        value = tl.load(x + row[:, None] * channels + c[None, :], mask=inside, other=0.0).to(tl.float32)
        value = value * tl.load(mask + row, mask=t < frames, other=0.0)[:, None]
        total += tl.sum(value, 0)
        square += tl.sum(value * value, 0)
    place = out + ((b * tl.num_programs(1) + split) * 2) * channels + c
    tl.store(place, total, mask=c < channels)
    tl.store(place + channels, square, mask=c < channels)


@triton.jit
def _apply(
    x, scale, shift, alpha, mask, out, frames, channels, SNAKE: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr
):
    b, at, block = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    c = block * CHANNELS + tl.arange(0, CHANNELS)
    t = at * ROWS + tl.arange(0, ROWS)
    inside = (t < frames)[:, None] & (c < channels)[None, :]
    row = (b * frames + t).to(tl.int64)
    place = row[:, None] * channels + c[None, :]
    value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    known = c < channels
    y = value * tl.load(scale + b * channels + c, mask=known, other=0.0)[None, :]
    y += tl.load(shift + b * channels + c, mask=known, other=0.0)[None, :]
    if SNAKE:
        a = tl.load(alpha + c, mask=known, other=1.0)[None, :]
        wave = tl.sin(a * y)
        y += wave * wave / a
    else:
        y = tl.where(y > 0, y, 0.2 * y)
    y = y * tl.load(mask + row, mask=t < frames, other=0.0)[:, None]
    tl.store(out + place, y.to(out.dtype.element_ty), mask=inside)


def _rows(x: Tensor) -> Tensor:
    """[B, C, 1, T] as contiguous [B, T, C]: no copy where x is channels last."""
    return x[:, :, 0].transpose(1, 2).contiguous()


def moments(x: Tensor, mask: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """As kokoro.moments."""
    rows = _rows(x)
    b, frames, channels = rows.shape
    splits = min(SPLITS, triton.cdiv(frames, ROWS))
    per_split = triton.cdiv(triton.cdiv(frames, splits), ROWS) * ROWS
    out = torch.empty(b, splits, 2, channels, device=x.device)
    _moments[(b, splits, triton.cdiv(channels, 64))](
        rows, mask.contiguous(), out, frames, channels, per_split, ROWS, 64
    )
    sums = out.sum(1)[..., None, None] / count[:, None]  # [B, 2, C, 1, 1]
    mean = sums[:, 0]
    return mean, ((sums[:, 1] - mean**2).clamp(min=0) + 1e-5).rsqrt()


def _act(x: Tensor, scale: Tensor, shift: Tensor, alpha: Tensor | None, mask: Tensor) -> Tensor:
    rows = _rows(x)
    b, frames, channels = rows.shape
    out = torch.empty_like(rows)
    grid = (b, triton.cdiv(frames, ROWS), triton.cdiv(channels, 64))
    given = scale if alpha is None else alpha
    _apply[grid](rows, scale.contiguous(), shift.contiguous(), given.contiguous(), mask.contiguous(), out, frames, channels,
                 alpha is not None, ROWS, 64)  # fmt: skip
    return out.transpose(1, 2).unsqueeze(2)


def snake(x: Tensor, scale: Tensor, shift: Tensor, alpha: Tensor, mask: Tensor) -> Tensor:
    return _act(x, scale, shift, alpha, mask)


def leaky(x: Tensor, scale: Tensor, shift: Tensor, mask: Tensor) -> Tensor:
    return _act(x, scale, shift, None, mask)


def agree(device: str) -> float:
    """Largest difference from the plain functions on random input."""
    import kokoro

    worst = 0.0
    for channels, frames in ((1090, 77), (128, 5000)):
        x = torch.randn(3, channels, 1, frames, device=device).contiguous(memory_format=torch.channels_last) * 2 + 0.5
        lengths = torch.tensor([frames, frames // 2, 9], device=device)
        mask = (torch.arange(frames, device=device) < lengths[:, None]).float()[:, None, None]
        plain, made = (f(x, mask, mask.sum(-1, keepdim=True)) for f in (kokoro.moments, moments))
        scale, shift = plain[1], -plain[0] * plain[1]
        alpha = torch.rand(1, channels, 1, 1, device=device) + 0.5
        pairs = [*zip(plain, made, strict=True), (kokoro.snake(x, scale, shift, alpha, mask), snake(x, scale, shift, alpha, mask)),
                 (kokoro.leaky(x, scale, shift, mask), leaky(x, scale, shift, mask))]  # fmt: skip
        worst = max(worst, *(float((a - b).abs().max()) for a, b in pairs))
    return worst
