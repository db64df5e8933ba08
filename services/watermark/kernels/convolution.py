"""Triton kernels of a 3x3 layer with everything that follows it: convolution, bias, gate, norm, history, next window.

A convolution is a matrix product: a row is a cell of the window's new columns, and for each of the three columns around it
the cells' channels of three neighbouring bins lie together, 3 * C_in numbers. `kernels.weight_columns` orders the weights as that
wants them, each channel's value beside its gate, so that a thread holds both sums. A program computes all channels of some
cells of one stream, in the window and in the pool; no other program touches them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from services.engine.graphs import has_large_blocks
from services.watermark.kernels import FP16_MAX

_FP16_MAX = tl.constexpr(FP16_MAX)


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _saturate(x):
    """Clamp to the range of fp16; NaN stays NaN."""
    return tl.where(x > _FP16_MAX, _FP16_MAX, tl.where(x < -_FP16_MAX, -_FP16_MAX, x))


@triton.jit
def _round_to_tf32(x):
    """As kernels.round_to_tf32. Tensor cores would truncate the low bits, which biases the result."""
    rounded = ((x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    return tl.where(x == x, rounded, x)


@triton.jit
def _brought(counts, stream, steps, COUNTED: tl.constexpr):
    """How many of a pass's columns a stream brings."""
    if COUNTED:
        return tl.load(counts + stream).to(tl.int32)
    else:
        return steps


@triton.jit
def _sums(window, weight, stream, known, steps, bins,
          GIVEN: tl.constexpr, WIDE: tl.constexpr, NARROW: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Values and gates of `known` cells: of the first WIDE / 2 channels, [TILE, WIDE], and of the next NARROW / 2."""
    parts: tl.constexpr = (3 * GIVEN + BLOCK - 1) // BLOCK  # of each column
    length: tl.constexpr = 3 * parts * BLOCK
    k = tl.arange(0, BLOCK)
    row = known % bins - 1  # the first of the three
    place = window + stream * (2 + steps) * bins * GIVEN + (known * GIVEN - GIVEN)[:, None] + k[None, :]
    wide_place = weight + tl.arange(0, WIDE)[None, :] * length + k[:, None]
    narrow_place = weight + (WIDE + tl.arange(0, NARROW if NARROW else 16))[None, :] * length + k[:, None]
    wide = tl.zeros((TILE, WIDE), dtype=tl.float32)
    narrow = tl.zeros((TILE, NARROW if NARROW else 16), dtype=tl.float32)
    for part in range(3 * parts):
        start = part % parts * BLOCK
        near = row[:, None] + ((start + k) // GIVEN)[None, :]
        cells = tl.load(place + (part // parts * bins * GIVEN + start), mask=(near >= 0) & (near < bins), other=0.0)
        wide = tl.dot(cells, tl.load(wide_place + part * BLOCK), wide, input_precision="tf32")
        if NARROW:
            narrow = tl.dot(cells, tl.load(narrow_place + part * BLOCK), narrow, input_precision="tf32")
    return wide, narrow


@triton.jit
def _gated(both, bias, shift, channel, CHANNELS: tl.constexpr, TILE: tl.constexpr, COUNT: tl.constexpr):
    """Values and gates in turns [TILE, 2 * COUNT] → the layer's output of `channel` [COUNT]."""
    value, gate = tl.split(tl.reshape(both, (TILE, COUNT, 2)))
    value += tl.load(bias + channel)[None, :]
    gate += tl.load(bias + CHANNELS + channel)[None, :]
    return value * _sigmoid(gate) + tl.load(shift + channel)[None, :]


@triton.jit
def _store(
    new, out, pool, slot, stream, cell, channel, within, inside, brought, steps, bins, cells, ends,
    WIDTH: tl.constexpr, CUT: tl.constexpr, HALF: tl.constexpr, ROUNDS: tl.constexpr,
):  # fmt: skip
    """Write cells of `channel` to the window, the history before them, and store the stream's last columns in the pool."""
    if CUT:
        new = tl.where(within[:, None] != 0, new, 0.0)
    if HALF:
        new = _saturate(new)
    if ROUNDS:
        new = _round_to_tf32(new)
    new = new.to(out.dtype.element_ty)
    mask = inside[:, None] & (channel < WIDTH)[None, :]
    window = out + stream * (2 + steps) * bins * WIDTH
    size = bins * WIDTH
    tl.store(window + 2 * size + cell[:, None] * WIDTH + channel[None, :], new, mask=mask)
    if ends:
        kept = pool + slot * 2 * size
        if brought == 1:  # the second stored column moves up
            index = cell[:, None] * WIDTH + channel[None, :]
            mask &= (cell < bins)[:, None]
            first = tl.load(kept + index, mask=mask)
            second = tl.load(kept + size + index, mask=mask)
            tl.store(window + index, first, mask=mask)
            tl.store(window + size + index, second, mask=mask)
            tl.debug_barrier()  # read everything before overwriting
            tl.store(kept + index, second, mask=mask)
            tl.store(kept + size + index, new, mask=mask)
        else:
            past = cell - (brought - 2) * bins
            index = past[:, None] * WIDTH + channel[None, :]
            mask &= ((past >= 0) & (past < 2 * bins))[:, None]
            old = tl.load(kept + index, mask=mask)
            tl.store(window + index, old, mask=mask)
            tl.debug_barrier()
            tl.store(kept + index, new, mask=mask)


# Not specialised on what varies by pass: one compiled variant serves every size, 1 included.
@triton.jit(do_not_specialize=["padding", "steps"], do_not_specialize_on_alignment=["inside", "rows", "counts"])
def gated_kernel(
    window, weight, bias, shift, extra, inside, pool, rows, padding, counts, out, steps, bins,
    GIVEN: tl.constexpr, CHANNELS: tl.constexpr, WIDTH: tl.constexpr, EXTRA: tl.constexpr, CUT: tl.constexpr,
    COUNTED: tl.constexpr, HALF: tl.constexpr, ROUNDS: tl.constexpr,
    WIDE: tl.constexpr, NARROW: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    cells = steps * bins
    tiles = tl.cdiv(cells, TILE)
    stream = (tl.program_id(0) // tiles).to(tl.int64)
    slot = tl.load(rows + stream)
    if slot == padding:
        return
    first = tl.program_id(0) % tiles * TILE
    cell = first + tl.arange(0, TILE)
    known = tl.minimum(cell, cells - 1)
    wide, narrow = _sums(window, weight, stream, known, steps, bins, GIVEN, WIDE, NARROW, TILE, BLOCK)
    within = cell
    if CUT:
        within = tl.load(inside + stream * steps + known // bins)
    brought = _brought(counts, stream, steps, COUNTED)
    ends = first + TILE > (brought - 2) * bins
    channel = tl.arange(0, WIDE // 2)
    new = _gated(wide, bias, shift, channel, CHANNELS, TILE, WIDE // 2)
    _store(new, out, pool, slot, stream, cell, channel, within, cell < cells, brought, steps, bins, cells, ends,
           WIDTH, CUT, HALF, ROUNDS)  # fmt: skip
    if NARROW:
        channel = WIDE // 2 + tl.arange(0, NARROW // 2)
        new = _gated(narrow, bias, shift, channel, CHANNELS, TILE, NARROW // 2)
        _store(new, out, pool, slot, stream, cell, channel, within, cell < cells, brought, steps, bins, cells, ends,
               WIDTH, CUT, HALF, ROUNDS)  # fmt: skip
    if WIDTH > CHANNELS:  # what else the next layer sees, and zeros
        more = tl.arange(0, 8)
        given = (cell < cells)[:, None] & (more < EXTRA)[None, :]
        new = tl.load(extra + (stream * cells + known)[:, None] * EXTRA + more[None, :], mask=given, other=0.0)
        _store(new, out, pool, slot, stream, cell, CHANNELS + more, within, cell < cells, brought, steps, bins, cells,
               ends, WIDTH, CUT, HALF, ROUNDS)  # fmt: skip


@triton.jit(do_not_specialize=["padding", "steps"], do_not_specialize_on_alignment=["inside", "rows"])
def output_kernel(
    window, weight, bias, shift, last, ending, inside, rows, padding, out, steps, bins,
    GIVEN: tl.constexpr, CHANNELS: tl.constexpr, CUT: tl.constexpr,
    WIDE: tl.constexpr, NARROW: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    cells = steps * bins
    tiles = tl.cdiv(cells, TILE)
    stream = (tl.program_id(0) // tiles).to(tl.int64)
    if tl.load(rows + stream) == padding:
        return
    cell = tl.program_id(0) % tiles * TILE + tl.arange(0, TILE)
    known = tl.minimum(cell, cells - 1)
    wide, narrow = _sums(window, weight, stream, known, steps, bins, GIVEN, WIDE, NARROW, TILE, BLOCK)
    channel = tl.arange(0, WIDE // 2)
    hidden = _gated(wide, bias, shift, channel, CHANNELS, TILE, WIDE // 2)
    value = tl.sum(hidden * tl.load(last + channel)[None, :], axis=1)
    gate = tl.sum(hidden * tl.load(last + CHANNELS + channel)[None, :], axis=1)
    if NARROW:
        channel = WIDE // 2 + tl.arange(0, NARROW // 2)
        hidden = _gated(narrow, bias, shift, channel, CHANNELS, TILE, NARROW // 2)
        value += tl.sum(hidden * tl.load(last + channel)[None, :], axis=1)
        gate += tl.sum(hidden * tl.load(last + CHANNELS + channel)[None, :], axis=1)
    mark = tl.abs((value + tl.load(ending)) * _sigmoid(gate + tl.load(ending + 1)) + tl.load(ending + 2))
    if CUT:
        mark = tl.where(tl.load(inside + stream * steps + known // bins) != 0, mark, 0.0)
    tl.store(out + stream * cells + cell, mark, mask=cell < cells)


def tile_of(channels: int, window: Tensor, ends: bool = False) -> dict[str, int]:
    """Cells of a program, warps, stages, and registers of a thread where two programs then fit a multiprocessor.

    ends: of output_kernel.
    """
    half = window.dtype == torch.float16
    tile = {"TILE": 128, "num_warps": 8, "num_stages": 4 if half else 3 if has_large_blocks(window.device) else 2}
    return tile if ends or not half or channels <= 32 else {**tile, "maxnreg": 128}


def parts_of(channels: int) -> tuple[int, int]:
    """Values and gates of all channels, as two powers of two."""
    wide = 1 << (2 * channels).bit_length() - 1
    return wide, 2 * channels - wide
