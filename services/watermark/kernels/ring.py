"""Triton kernels of the sample ring: what comes in, what a pass reads, and what goes out with the mark. signal_plain.py says
what they compute."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024


@triton.jit(do_not_specialize=["size", "count"], do_not_specialize_on_alignment=["rows", "first", "end"])
def _write_ring(ring, rows, first, end, samples, size, count, BLOCK: tl.constexpr):
    stream = tl.program_id(0).to(tl.int64)
    offset = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    begin = tl.load(first + stream)
    mask = (offset < count) & (offset < tl.load(end + stream) - begin)
    cell = ((begin % size).to(tl.int32) + offset) % size
    values = tl.load(samples + stream * count + offset, mask=mask)
    tl.store(ring + tl.load(rows + stream) * (size + 1) + cell, values, mask=mask)


def write_ring(ring: Tensor, rows: Tensor, first: Tensor, end: Tensor, samples: Tensor) -> None:
    count = samples.shape[1]
    assert ring.is_contiguous() and samples.is_contiguous()
    _write_ring[(len(rows), triton.cdiv(count, _BLOCK))](
        ring, rows, first, end, samples, ring.shape[1] - 1, count, BLOCK=_BLOCK
    )


@triton.jit(do_not_specialize=["size", "count"], do_not_specialize_on_alignment=["rows", "first", "end"])
def _read_ring(ring, rows, first, end, out, size, count, BLOCK: tl.constexpr):
    stream = tl.program_id(0).to(tl.int64)
    offset = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    begin = tl.load(first + stream)
    position = begin + offset
    base = ((begin % size + size) % size).to(tl.int32)  # a remainder has the sign of `begin`
    known = (position >= 0) & (position < tl.load(end + stream))
    values = tl.load(ring + tl.load(rows + stream) * (size + 1) + (base + offset) % size, mask=known, other=0.0)
    tl.store(out + stream * count + offset, values, mask=offset < count)


def read_ring(ring: Tensor, rows: Tensor, first: Tensor, end: Tensor, count: int) -> Tensor:
    out = ring.new_empty(len(rows), count)
    assert ring.is_contiguous()
    _read_ring[(len(rows), triton.cdiv(count, _BLOCK))](
        ring, rows, first, end, out, ring.shape[1] - 1, count, BLOCK=_BLOCK
    )
    return out


@triton.jit(
    do_not_specialize=["size", "given", "count"],
    do_not_specialize_on_alignment=["rows", "first", "index", "emitted", "power"],
)
def _add_marks(ring, rows, first, marks, index, emitted, power, out, size, given, count, BLOCK: tl.constexpr):
    stream = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    own = ring + tl.load(rows + stream) * (size + 1)
    base = (tl.load(first + stream) % size).to(tl.int32)
    source = marks + stream * given + tl.load(index + stream)
    counted = tl.load(emitted + stream)
    broken = tl.zeros((BLOCK,), dtype=tl.int32)
    for start in range(0, count, BLOCK):
        offset = start + lane
        mask = offset < count
        value = tl.load(source + offset, mask=mask, other=0.0)
        is_finite = tl.abs(value) < float("inf")
        broken += ((is_finite == 0) & (offset < counted)).to(tl.int32)
        value += tl.load(own + (base + offset) % size, mask=mask, other=0.0)
        tl.store(out + stream * (count + 3) + offset, value, mask=mask)
    end = out + stream * (count + 3) + count
    tl.store(end, tl.where(tl.sum(broken) == 0, 1.0, 0.0))
    part = tl.arange(0, 2)  # of a float64
    tl.store(end + 1 + part, tl.load(power + 2 * stream + part))


def add_marks(
    ring: Tensor, rows: Tensor, first: Tensor, marks: Tensor, index: Tensor, emitted: Tensor, power: Tensor, count: int
) -> Tensor:
    out = marks.new_empty(len(rows), count + 3)
    marks = marks.contiguous()
    _add_marks[(len(rows),)](
        ring, rows, first, marks, index, emitted, power.contiguous().view(torch.float32), out, ring.shape[1] - 1,
        marks.shape[1], count, BLOCK=2048, num_warps=8,
    )  # fmt: skip
    return out
