"""The operations of plain.py for CUDA devices. A layer is one kernel (convolution.py), or a convolution by cuDNN without
bias and one Triton kernel for everything that follows it: the layers of fp32 and the widest of TF32. The first layer, with
one input channel, is a kernel of its own; the last layer, with one output channel, is part of the kernel before it.

A program writes some cells of one column, in the window and in the pool; no other program touches them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from services.watermark.kernels import BLOCK, HISTORY, History, Layer, OutputLayer, convolution
from services.watermark.kernels.convolution import _brought, _round_to_tf32, _saturate, _sigmoid

_BLOCK = 1024  # cells per program
_ROWS = 32  # of the first layer


@triton.jit
def _exchange_history(new, out, pool, rows, counts, stream, column, steps, size, index, mask, COUNTED: tl.constexpr):
    """Write a column's cells to the window, the history before it, and store the stream's last columns in the pool.

    A column is stored where this program has read one before; for a stream that brings a single column the
    second stored column moves up.
    """
    window = out + stream * (2 + steps) * size + index
    kept = pool + tl.load(rows + stream) * 2 * size + index
    tl.store(window + (2 + column) * size, new, mask=mask)
    brought = _brought(counts, stream, steps, COUNTED)
    if brought == 1:
        if column == 0:
            first = tl.load(kept, mask=mask)
            second = tl.load(kept + size, mask=mask)
            tl.store(window, first, mask=mask)
            tl.store(window + size, second, mask=mask)
            tl.debug_barrier()  # read everything before overwriting
            tl.store(kept, second, mask=mask)
            tl.store(kept + size, new, mask=mask)
    elif (column >= brought - 2) & (column < brought):
        past = column - (brought - 2)
        old = tl.load(kept + past * size, mask=mask)
        tl.store(window + past * size, old, mask=mask)
        tl.debug_barrier()
        tl.store(kept + past * size, new, mask=mask)


# Not specialised on what varies by pass: one compiled variant serves every size, 1 included.
@triton.jit(do_not_specialize=["steps"], do_not_specialize_on_alignment=["inside", "rows", "counts"])
def _gate_kernel(
    both, bias, shift, extra, inside, pool, rows, counts, out, steps, bins,
    CHANNELS: tl.constexpr, WIDTH: tl.constexpr, EXTRA: tl.constexpr, CUT: tl.constexpr, COUNTED: tl.constexpr,
    ROUNDS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64)
    stream = at // steps
    column = at % steps
    index = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = index < bins * WIDTH
    row, channel = index // WIDTH, index % WIDTH
    own = mask & (channel < CHANNELS)
    place = both + at * (bins * 2 * CHANNELS) + row * (2 * CHANNELS) + channel
    value = tl.load(place, mask=own, other=0.0)
    gate = tl.load(place + CHANNELS, mask=own, other=0.0)
    value += tl.load(bias + channel, mask=own, other=0.0)
    gate += tl.load(bias + CHANNELS + channel, mask=own, other=0.0)
    new = value * _sigmoid(gate) + tl.load(shift + channel, mask=own, other=0.0)
    if EXTRA:
        given = mask & (channel >= CHANNELS) & (channel < CHANNELS + EXTRA)
        more = tl.load(extra + (at * bins + row) * EXTRA + channel - CHANNELS, mask=given, other=0.0)
        new = tl.where(own, new, more)
    if CUT:
        new = tl.where(tl.load(inside + at) != 0, new, 0.0)
    if ROUNDS:
        new = _round_to_tf32(new)
    _exchange_history(new, out, pool, rows, counts, stream, column, steps, bins * WIDTH, index, mask, COUNTED)


@triton.jit(do_not_specialize=["padding", "steps"], do_not_specialize_on_alignment=["inside", "rows", "counts"])
def _first_kernel(
    x, weight, bias, shift, inside, pool, rows, padding, counts, out, steps, bins,
    CHANNELS: tl.constexpr, PADDED: tl.constexpr, CUT: tl.constexpr, COUNTED: tl.constexpr, HALF: tl.constexpr,
    ROUNDS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64)
    stream = at // steps
    if tl.load(rows + stream) == padding:
        return
    column = at % steps
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, PADDED)
    own = channel < CHANNELS
    value = tl.zeros((ROWS, PADDED), dtype=tl.float32) + tl.load(bias + channel, mask=own, other=0.0)[None, :]
    gate = tl.zeros((ROWS, PADDED), dtype=tl.float32) + tl.load(bias + CHANNELS + channel, mask=own, other=0.0)[None, :]
    for tap in tl.static_range(9):
        near = row + tap % 3 - 1
        source = x + (stream * (2 + steps) + column + tap // 3) * bins + near
        cells = tl.load(source, mask=(near >= 0) & (near < bins), other=0.0)[:, None]
        taps = weight + channel * 9 + tap
        value += cells * tl.load(taps, mask=own, other=0.0)[None, :]
        gate += cells * tl.load(taps + CHANNELS * 9, mask=own, other=0.0)[None, :]
    new = value * _sigmoid(gate) + tl.load(shift + channel, mask=own, other=0.0)[None, :]
    if CUT:
        new = tl.where(tl.load(inside + at) != 0, new, 0.0)
    if HALF:
        new = _saturate(new)
    if ROUNDS:
        new = _round_to_tf32(new)
    index = row[:, None] * CHANNELS + channel[None, :]
    mask = (row < bins)[:, None] & own[None, :]
    _exchange_history(
        new.to(out.dtype.element_ty),
        out,
        pool,
        rows,
        counts,
        stream,
        column,
        steps,
        bins * CHANNELS,
        index,
        mask,
        COUNTED,
    )


@triton.jit(do_not_specialize_on_alignment=["inside"])
def _output_kernel(
    both, bias, shift, weight, ending, inside, out, bins,
    CHANNELS: tl.constexpr, PADDED: tl.constexpr, CUT: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, PADDED)
    own = channel < CHANNELS
    mask = (row < bins)[:, None] & own[None, :]
    place = both + at * (bins * 2 * CHANNELS) + row[:, None] * (2 * CHANNELS) + channel[None, :]
    value = tl.load(place, mask=mask, other=0.0)
    gate = tl.load(place + CHANNELS, mask=mask, other=0.0)
    value += tl.load(bias + channel, mask=own, other=0.0)[None, :]
    gate += tl.load(bias + CHANNELS + channel, mask=own, other=0.0)[None, :]
    hidden = value * _sigmoid(gate) + tl.load(shift + channel, mask=own, other=0.0)[None, :]
    # The weights beyond the last channel are zero.
    last = tl.sum(hidden * tl.load(weight + channel, mask=own, other=0.0)[None, :], axis=1) + tl.load(ending)
    opens = tl.load(weight + CHANNELS + channel, mask=own, other=0.0)[None, :]
    opened = _sigmoid(tl.sum(hidden * opens, axis=1) + tl.load(ending + 1))
    mark = tl.abs(last * opened + tl.load(ending + 2))
    if CUT:
        mark = tl.where(tl.load(inside + at) != 0, mark, 0.0)
    tl.store(out + at * bins + row, mark, mask=row < bins)


def gated_layer(
    window: Tensor, layer: Layer, history: History, inside: Tensor | None, extra: Tensor | None = None
) -> Tensor:
    count, columns, bins, _ = window.shape
    columns -= HISTORY
    channels, width = len(layer.shift), history.pool.shape[3]
    out = history.pool.new_empty(count, HISTORY + columns, bins, width)
    cut = out if inside is None else inside.contiguous().view(torch.int8)
    counts = history.rows if history.counts is None else history.counts
    half, counted = history.pool.dtype != layer.bias.dtype, history.counts is not None
    assert history.pool.is_contiguous() and history.rows.is_contiguous() and counts.is_contiguous()
    if window.shape[3] == 1:
        assert width == channels and window.is_contiguous() and layer.weight.is_contiguous()
        _first_kernel[(count * columns, triton.cdiv(bins, _ROWS))](
            window, layer.weight, layer.bias, layer.shift, cut, history.pool, history.rows, history.padding,
            counts, out, columns, bins,
            CHANNELS=channels, PADDED=triton.next_power_of_2(channels), CUT=inside is not None, COUNTED=counted,
            HALF=half, ROUNDS=layer.rounds, ROWS=_ROWS, num_warps=4,
        )  # fmt: skip
        return out
    more = out if extra is None else extra.contiguous()
    if layer.columns is not None:
        tile, (wide, narrow) = convolution.tile_of(channels, window), convolution.parts_of(channels)
        assert window.is_contiguous() and width - channels <= 8
        convolution.gated_kernel[(count * triton.cdiv(columns * bins, tile["TILE"]),)](
            window, layer.columns, layer.bias, layer.shift, more, cut, history.pool, history.rows,
            history.padding, counts, out, columns, bins,
            GIVEN=window.shape[3], CHANNELS=channels, WIDTH=width, EXTRA=0 if extra is None else extra.shape[3], CUT=inside is not None, COUNTED=counted, HALF=half, ROUNDS=layer.rounds, WIDE=wide, NARROW=narrow,
            BLOCK=BLOCK, **tile,
        )  # fmt: skip
        return out
    both = _convolve(window, layer)
    _gate_kernel[(count * columns, triton.cdiv(bins * width, _BLOCK))](
        both, layer.bias, layer.shift, more, cut, history.pool, history.rows, counts, out, columns, bins,
        CHANNELS=channels, WIDTH=width, EXTRA=0 if extra is None else extra.shape[3], CUT=inside is not None,
        COUNTED=counted, ROUNDS=layer.rounds, BLOCK=_BLOCK, num_warps=4,
    )  # fmt: skip
    return out


def output_layers(
    window: Tensor,
    layer: Layer,
    output: OutputLayer,
    inside: Tensor | None,
    rows: Tensor | None = None,
    padding: int = -1,
) -> Tensor:
    count, columns, bins, given = window.shape
    columns, channels = columns - HISTORY, len(layer.shift)
    out = layer.bias.new_empty(count, columns, bins)
    cut = out if inside is None else inside.contiguous().view(torch.int8)
    if layer.columns is not None:
        tile = convolution.tile_of(channels, window, ends=True)
        wide, narrow = convolution.parts_of(channels)
        rows = torch.zeros(count, dtype=torch.int64, device=window.device) if rows is None else rows
        assert window.is_contiguous() and rows.is_contiguous()
        convolution.output_kernel[(count * triton.cdiv(columns * bins, tile["TILE"]),)](
            window, layer.columns, layer.bias, layer.shift, output.weight, output.bias, cut, rows, padding,
            out, columns, bins, GIVEN=given, CHANNELS=channels, CUT=inside is not None, WIDE=wide, NARROW=narrow,
            BLOCK=BLOCK, **tile,
        )  # fmt: skip
        return out
    both = _convolve(window, layer)
    _output_kernel[(count * columns, triton.cdiv(bins, 16))](
        both, layer.bias, layer.shift, output.weight, output.bias, cut, out, bins,
        CHANNELS=channels, PADDED=triton.next_power_of_2(channels), CUT=inside is not None,
        ROWS=16, num_warps=4,
    )  # fmt: skip
    return out


def _convolve(window: Tensor, layer: Layer) -> Tensor:
    """[B, HISTORY + k, rows, C_in] → both halves, without bias [B, k, rows, 2 * C]."""
    both = F.conv2d(window.permute(0, 3, 1, 2), layer.weight, padding=(0, 1))
    return both.permute(0, 2, 3, 1).contiguous()
