"""Triton kernels from the mark's magnitudes back to samples: what signal_plain.py has in `scaled`, `taken` and `waves`.

Each program reads what it needs of a stream's history before it overwrites it, and no other program touches that part.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from services.watermark.kernels import signal_plain
from services.watermark.kernels.convolution import _brought

_BLOCK = 1024
# NaN stays NaN, so that add_marks sees it: by default the greater of NaN and a number is the number.
_ALL = tl.constexpr(tl.PropagateNan.ALL)


@triton.jit(do_not_specialize=["width", "band", "bins"])
def _scaled(mark, out, width, band, bins, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64)
    cell = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, band, BLOCK):
        value = tl.load(mark + at * width + start + cell, mask=start + cell < band, other=0.0)
        total += value * value
    root = tl.rsqrt(tl.maximum(tl.sum(total) / bins, 1e-30, propagate_nan=_ALL))
    for start in range(0, band, BLOCK):
        mask = start + cell < band
        tl.store(out + at * band + start + cell, tl.load(mark + at * width + start + cell, mask=mask) * root, mask=mask)


def scaled(mark: Tensor, band: int, bins: int) -> Tensor:
    count, steps, width = mark.shape
    out = mark.new_empty(count, steps, band)
    _scaled[(count * steps,)](mark.contiguous(), out, width, band, bins, BLOCK=_BLOCK)
    return out


@triton.jit(
    do_not_specialize=["steps", "scale_stride", "bins", "band"], do_not_specialize_on_alignment=["rows", "counts"]
)
def _taken(
    mark, scale, spectra, pool, rows, counts, out, steps, scale_stride, bins, band,
    KEPT: tl.constexpr, COUNTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    stream = tl.program_id(0).to(tl.int64)
    cell = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = cell < band
    kept = pool + tl.load(rows + stream) * KEPT * band * 2 + 2 * cell
    brought = _brought(counts, stream, steps, COUNTED)
    for column in range(0, steps):
        at = stream * steps + column
        source = spectra + (at - KEPT) * bins * 2 + 2 * cell
        if column < KEPT:
            source = kept + column * band * 2
        real, imaginary = tl.load(source, mask=mask), tl.load(source + 1, mask=mask)
        magnitude = tl.sqrt(real * real + imaginary * imaginary)
        wanted = tl.load(mark + at * band + cell, mask=mask) * tl.load(scale + stream * scale_stride + column)
        loss = tl.minimum(wanted, magnitude, propagate_nan=_ALL)
        share = -loss / tl.maximum(magnitude, 1e-30, propagate_nan=_ALL)
        tl.store(out + (at * band + cell) * 2, real * share, mask=mask)
        tl.store(out + (at * band + cell) * 2 + 1, imaginary * share, mask=mask)
    for column in tl.static_range(KEPT):  # what moves up comes from behind what is overwritten
        source = spectra + (stream * steps + column + brought - KEPT) * bins * 2 + 2 * cell
        if column + brought < KEPT:
            source = kept + (column + brought) * band * 2
        real, imaginary = tl.load(source, mask=mask), tl.load(source + 1, mask=mask)
        tl.debug_barrier()  # read everything before overwriting
        tl.store(kept + column * band * 2, real, mask=mask)
        tl.store(kept + column * band * 2 + 1, imaginary, mask=mask)


def taken(mark: Tensor, scale: Tensor, spectra: Tensor, pool: Tensor, rows: Tensor, counts: Tensor | None) -> Tensor:
    count, steps, band = mark.shape
    out = torch.empty(count, steps, band, dtype=spectra.dtype, device=mark.device)
    mark, spectra = mark.contiguous(), spectra.contiguous()
    assert pool.is_contiguous() and pool.shape[2] == band and scale.stride(1) == 1
    _taken[(count, triton.cdiv(band, 256))](
        mark, scale, torch.view_as_real(spectra), torch.view_as_real(pool), rows, rows if counts is None else counts,
        torch.view_as_real(out), steps, scale.stride(0), spectra.shape[2], band, KEPT=pool.shape[1], COUNTED=counts is not None,
        BLOCK=256, num_warps=4,
    )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["steps"], do_not_specialize_on_alignment=["rows", "inside", "counts"])
def _waves(
    frames, window, overlap, kept, rows, inside, counts, out, steps,
    HOP: tl.constexpr, KEPT: tl.constexpr, CUT: tl.constexpr, COUNTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64)
    stream, column = at // steps, at % steps
    cell = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = cell < HOP
    slot = tl.load(rows + stream)
    brought = _brought(counts, stream, steps, COUNTED)
    early, late = tl.load(window + cell, mask=mask, other=1.0), tl.load(window + HOP + cell, mask=mask, other=0.0)
    own = frames + at * 2 * HOP + cell
    before = tl.load(overlap + slot * HOP + cell, mask=mask & (column == 0), other=0.0)
    before += tl.load(own - HOP, mask=mask & (column != 0), other=0.0) * late
    value = (before + tl.load(own, mask=mask) * early) / (early * early + late * late)
    if CUT:
        value = tl.where(tl.load(inside + at) != 0, value, 0.0)
    wave = out + stream * (KEPT + steps * HOP)
    tl.store(wave + KEPT + column * HOP + cell, value, mask=mask)
    if column == 0:  # the one that reads it
        tl.debug_barrier()  # read everything before overwriting
        last = tl.load(frames + (stream * steps + brought - 1) * 2 * HOP + HOP + cell, mask=mask)
        tl.store(overlap + slot * HOP + cell, last * late, mask=mask)
    if column == brought - 1:  # its last samples are what is kept
        index = cell - (HOP - KEPT)
        mask &= index >= 0
        old = tl.load(kept + slot * KEPT + index, mask=mask)
        tl.store(wave + index, old, mask=mask)
        tl.debug_barrier()
        tl.store(kept + slot * KEPT + index, value, mask=mask)


def waves(
    frames: Tensor,
    window: Tensor,
    overlap: Tensor,
    kept: Tensor,
    rows: Tensor,
    inside: Tensor | None,
    counts: Tensor | None,
) -> Tensor:
    count, steps, n_fft = frames.shape
    hop, length = n_fft // 2, kept.shape[1]
    if length > hop:
        return signal_plain.waves(frames, window, overlap, kept, rows, inside, counts)
    out = frames.new_empty(count, length + steps * hop)
    cut = out if inside is None else inside.contiguous().view(torch.int8)
    assert frames.is_contiguous() and overlap.is_contiguous() and kept.is_contiguous()
    _waves[(count * steps, triton.cdiv(hop, _BLOCK))](
        frames, window, overlap, kept, rows, cut, rows if counts is None else counts, out, steps,
        HOP=hop, KEPT=length, CUT=inside is not None, COUNTED=counts is not None, BLOCK=_BLOCK,
    )  # fmt: skip
    return out
