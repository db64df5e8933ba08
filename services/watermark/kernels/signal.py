"""Triton kernels for the operations of signal_plain.py, one or two launches where torch takes ten; here those from samples
to what the nets take, in ring.py and synthesis.py the others.

Each program reads what it needs of a stream's history before it overwrites it, and no other program touches that part.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from services.watermark.hparams import TRAINING_POWER
from services.watermark.kernels import signal_plain
from services.watermark.kernels.convolution import _brought
from services.watermark.kernels.ring import add_marks, read_ring, write_ring
from services.watermark.kernels.synthesis import _ALL, scaled, taken, waves
from services.watermark.level import FixedLevel, RunningLevel

__all__ = [
    "add_marks", "carriers", "energies", "frames", "levels", "open_windows", "read_ring", "scaled", "taken", "waves", "write_ring",
]  # fmt: skip

_BLOCK = 1024


@triton.jit(
    do_not_specialize=["columns", "count"], do_not_specialize_on_alignment=["start", "begin", "length", "mirror"]
)
def _frames(samples, start, begin, length, mirror, window, out, columns, count, N: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64)
    stream, column = at // columns, at % columns
    cell = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    position = tl.abs(tl.load(begin + stream) + column * (N // 2) + cell)
    position = tl.minimum(position, tl.load(mirror + stream) - position)
    index = tl.minimum(tl.maximum(position - tl.load(start + stream), 0), count - 1)
    mask = (cell < N) & (position < tl.load(length + stream))
    values = tl.load(samples + stream * count + index, mask=mask, other=0.0)
    tl.store(out + at * N + cell, values * tl.load(window + cell, mask=cell < N), mask=cell < N)


def frames(
    samples: Tensor, start: Tensor, begin: Tensor, length: Tensor, mirror: Tensor, window: Tensor, columns: int
) -> Tensor:
    n_fft, samples = len(window), samples.contiguous()
    out = samples.new_empty(len(samples), columns, n_fft)
    _frames[(len(samples) * columns, triton.cdiv(n_fft, _BLOCK))](
        samples, start, begin, length, mirror, window, out, columns, samples.shape[1], N=n_fft, BLOCK=_BLOCK
    )
    return out


@triton.jit(do_not_specialize=["bins"])
def _energies(spectra, out, bins, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64)
    cell = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, 2 * bins, BLOCK):
        value = tl.load(spectra + at * 2 * bins + start + cell, mask=start + cell < 2 * bins, other=0.0)
        total += value * value
    tl.store(out + at, tl.sum(total) / bins)


def energies(spectra: Tensor) -> Tensor:
    count, columns, bins = spectra.shape
    out = torch.empty(count, columns, device=spectra.device)
    _energies[(count * columns,)](torch.view_as_real(spectra.contiguous()), out, bins, BLOCK=_BLOCK)
    return out


@triton.jit(do_not_specialize=["steps"], do_not_specialize_on_alignment=["rows", "first", "counts"])
def _levels(
    energy, powers, scales, rows, first, counts, gains, whole, sums, steps, window_energy, strength, prior, floor,
    training, silence, KIND: tl.constexpr, RUNNING: tl.constexpr, KEPT: tl.constexpr, COUNTED: tl.constexpr,
    LANES: tl.constexpr,
):  # fmt: skip
    stream = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, LANES)
    mask = lane < steps
    slot = tl.load(rows + stream)
    brought = _brought(counts, stream, steps, COUNTED)
    own = tl.load(energy + stream * steps + lane, mask=mask, other=0.0)
    power = own / window_energy
    before = tl.load(powers + slot)
    level = tl.zeros((LANES,), dtype=tl.float32) + floor
    if RUNNING:
        mean = before + tl.cumsum(power.to(tl.float64)) + training * prior
        count = (tl.load(first + stream) + lane + 1).to(tl.float32) + prior
        level = tl.maximum((mean / count.to(tl.float64)).to(tl.float32), level, propagate_nan=_ALL)
    total = before + tl.sum(tl.where(lane < brought, power, 0.0).to(tl.float64))
    gain = tl.sqrt(training / level)
    if KIND == 0:
        scale = tl.sqrt(own)
    elif KIND == 1:
        scale = tl.sqrt(level * window_energy)
    else:
        scale = 1.0 / gain
    scale = tl.where(power > level * silence, scale * strength, 0.0)
    tl.store(gains + stream * steps + lane, gain, mask=mask)
    out = whole + stream * (KEPT + steps)
    old = lane < KEPT
    tl.store(out + lane, tl.load(scales + slot * KEPT + lane, mask=old), mask=old)
    tl.store(out + KEPT + lane, scale, mask=mask)
    tl.debug_barrier()
    tl.store(scales + slot * KEPT + lane, tl.load(out + brought + lane, mask=old), mask=old)
    tl.store(powers + slot, total)
    tl.store(sums + stream, total)


def levels(
    energy: Tensor,
    loudness: signal_plain.Loudness,
    powers: Tensor,
    scales: Tensor,
    rows: Tensor,
    first: Tensor,
    counts: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    level, shape, (count, steps), kept = loudness.level, loudness.hparams, energy.shape, scales.shape[1]
    if not isinstance(level, RunningLevel | FixedLevel):
        return signal_plain.levels(energy, loudness, powers, scales, rows, first, counts)
    if isinstance(level, RunningLevel):
        runs, prior, floor = True, level.prior_seconds * loudness.columns_per_second, level.floor
    else:
        runs, prior, floor = False, 0.0, level.power
    gains, whole = energy.new_empty(count, steps), energy.new_empty(count, kept + steps)
    sums = powers.new_empty(count)
    kind = 0 if shape.frame_level_normalization else 1 if shape.utterance_level_normalization else 2
    assert energy.is_contiguous() and powers.is_contiguous() and scales.is_contiguous()
    _levels[(count,)](
        energy, powers, scales, rows, first, rows if counts is None else counts, gains, whole, sums, steps,
        loudness.window_energy, loudness.strength, prior, floor, TRAINING_POWER, signal_plain.SILENCE,
        KIND=kind, RUNNING=runs, KEPT=kept, COUNTED=counts is not None,
        LANES=triton.next_power_of_2(max(steps, kept)), num_warps=1,
    )  # fmt: skip
    return gains, whole[:, :steps], sums


@triton.jit(do_not_specialize=["all_bins", "bins"])
def _carriers(spectra, gain, out, all_bins, bins, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64)
    cell = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = cell < bins
    source = spectra + (at * all_bins + cell) * 2
    real, imaginary = tl.load(source, mask=mask), tl.load(source + 1, mask=mask)
    tl.store(out + at * bins + cell, tl.sqrt(real * real + imaginary * imaginary) * tl.load(gain + at), mask=mask)


def carriers(spectra: Tensor, gain: Tensor, bins: int) -> Tensor:
    count, columns, all_bins = spectra.shape
    out = gain.new_empty(count, columns, bins)
    _carriers[(count * columns, triton.cdiv(bins, _BLOCK))](
        torch.view_as_real(spectra.contiguous()), gain.contiguous(), out, all_bins, bins, BLOCK=_BLOCK
    )
    return out


@triton.jit
def _pair(carrier, message, symbols, inside, stream, column, steps, bins, row, mask, CUT: tl.constexpr):
    """A column's carrier and message."""
    magnitude = tl.load(carrier + (stream * steps + column) * bins + row, mask=mask)
    symbol = tl.load(message + tl.load(symbols + stream * steps + column) * bins + row, mask=mask)
    if CUT:
        lies = tl.load(inside + stream * steps + column) != 0
        magnitude, symbol = tl.where(lies, magnitude, 0.0), tl.where(lies, symbol, 0.0)
    return magnitude, symbol


@triton.jit(do_not_specialize=["steps", "bins"], do_not_specialize_on_alignment=["inside", "rows", "counts"])
def _open_windows(
    carrier, message, symbols, inside, pending, opening, rows, counts, before, window, steps, bins,
    KEPT: tl.constexpr, CUT: tl.constexpr, COUNTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    stream = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = row < bins
    slot = tl.load(rows + stream)
    brought = _brought(counts, stream, steps, COUNTED)
    kept = pending + slot * KEPT * bins * 2 + 2 * row
    out = before + stream * steps * bins * 2 + 2 * row
    for column in tl.static_range(KEPT):  # the columns before the pass
        within = mask & (column < steps)
        for part in tl.static_range(2):
            value = tl.load(kept + column * bins * 2 + part, mask=within)
            tl.store(out + column * bins * 2 + part, value, mask=within)
    first = opening + slot * 2 * bins + row
    place = window + stream * (2 + steps) * bins + row
    one, two = tl.load(first, mask=mask), tl.load(first + bins, mask=mask)
    tl.store(place, one, mask=mask)
    tl.store(place + bins, two, mask=mask)
    tl.debug_barrier()  # read everything before overwriting
    for column in range(0, steps):
        magnitude, symbol = _pair(carrier, message, symbols, inside, stream, column, steps, bins, row, mask, CUT)
        tl.store(place + (2 + column) * bins, magnitude, mask=mask)
        within = mask & (column + KEPT < steps)
        tl.store(out + (column + KEPT) * bins * 2, magnitude, mask=within)
        tl.store(out + (column + KEPT) * bins * 2 + 1, symbol, mask=within)
        if column == brought - 2:
            tl.store(first, magnitude, mask=mask)
        if column == brought - 1:
            if brought == 1:
                tl.store(first, two, mask=mask)
            tl.store(first + bins, magnitude, mask=mask)
    for column in tl.static_range(KEPT):  # what moves up comes from behind what is overwritten
        source = column + brought
        older = mask & (source < KEPT)
        new = mask & (source >= KEPT)
        magnitude, symbol = _pair(
            carrier, message, symbols, inside, stream, tl.maximum(source - KEPT, 0), steps, bins, row, new, CUT
        )
        magnitude = tl.where(source < KEPT, tl.load(kept + source * bins * 2, mask=older, other=0.0), magnitude)
        symbol = tl.where(source < KEPT, tl.load(kept + source * bins * 2 + 1, mask=older, other=0.0), symbol)
        tl.debug_barrier()
        tl.store(kept + column * bins * 2, magnitude, mask=mask)
        tl.store(kept + column * bins * 2 + 1, symbol, mask=mask)


def open_windows(
    carrier: Tensor,
    message: Tensor,
    symbols: Tensor,
    inside: Tensor | None,
    pending: Tensor,
    opening: Tensor,
    rows: Tensor,
    counts: Tensor | None,
) -> tuple[Tensor, Tensor]:
    count, steps, bins = carrier.shape
    before = carrier.new_empty(count, steps, bins, 2)
    window = carrier.new_empty(count, 2 + steps, bins, 1)
    cut = window if inside is None else inside.contiguous().view(torch.int8)
    assert pending.is_contiguous() and opening.is_contiguous() and message.is_contiguous()
    _open_windows[(count, triton.cdiv(bins, 256))](
        carrier.contiguous(), message, symbols.contiguous(), cut, pending, opening, rows, rows if counts is None else counts, before, window,
        steps, bins, KEPT=pending.shape[1], CUT=inside is not None, COUNTED=counts is not None, BLOCK=256, num_warps=4,
    )  # fmt: skip
    return before, window
