"""What a pass does around the nets, in plain torch: the reference for signal.py. B: streams of a pass. k: columns of each."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from services.watermark.hparams import TRAINING_POWER, Hparams
from services.watermark.level import Level
from services.watermark.state_pool import append_history

# Columns this far below the level are not marked. A mark there would take everything in its bins, whatever
# the strength, and holes in the faint noise of pauses are most of what DNSMOS hears of a mark. Bundled
# model, 40 clips each, loss of OVRL / clips in which the stock decoder, which forgives no symbol, spells the
# key: marked everywhere 0.061 / 40; down to 35 dB below the level 0.045 / 39; to 30 dB 0.024 / 38.
# (130 clips: 0.033 at 35 dB, 0.022 at 30 dB.)
SILENCE = 10 ** (-35.0 / 10)


def write_ring(ring: Tensor, rows: Tensor, first: Tensor, end: Tensor, samples: Tensor) -> None:
    """Store samples [B, n] of positions first [B] up to end [B] in each stream's ring; those beyond are ignored.

    ring: [slots, size + 1]: position p lies at p mod size. One more cell takes what is ignored. rows: slots [B].
    """
    size = ring.shape[1] - 1
    position = first[:, None] + torch.arange(samples.shape[1], device=ring.device)
    cells = torch.where(position < end[:, None], position % size, size) + rows[:, None] * (size + 1)
    ring.view(-1).index_put_((cells,), samples)


def read_ring(ring: Tensor, rows: Tensor, first: Tensor, end: Tensor, count: int) -> Tensor:
    """Samples from position `first` [B] on [B, count]; zeros before 0 and from `end` [B] on."""
    size = ring.shape[1] - 1
    position = first[:, None] + torch.arange(count, device=ring.device)
    samples = ring.view(-1).take(position % size + rows[:, None] * (size + 1))
    return samples.masked_fill_((position < 0) | (position >= end[:, None]), 0)


def frames(
    samples: Tensor, start: Tensor, begin: Tensor, length: Tensor, mirror: Tensor, window: Tensor, columns: int
) -> Tensor:
    """The windowed frames of neighbouring columns, [B, columns, N]; see Framing.analyse. window: [N]."""
    n_fft = len(window)
    span = (columns - 1) * (n_fft // 2) + n_fft
    position = (begin[:, None] + torch.arange(span, device=samples.device)).abs_()
    position = torch.minimum(position, mirror[:, None] - position)
    framed = samples.gather(1, (position - start[:, None]).clamp_(0, samples.shape[1] - 1))
    framed.masked_fill_(position >= length[:, None], 0)
    return framed.unfold(1, n_fft, n_fft // 2) * window


def energies(spectra: Tensor) -> Tensor:
    """The mean square of each column, complex [B, k, F] → [B, k]."""
    return torch.view_as_real(spectra).square().sum(dim=3).mean(dim=2)


class Loudness(NamedTuple):
    """What decides how strongly a column is marked. strength: of the mark, as a share of the level."""

    level: Level
    hparams: Hparams
    window_energy: float
    columns_per_second: float
    strength: float


def levels(
    energy: Tensor,
    loudness: Loudness,
    powers: Tensor,
    scales: Tensor,
    rows: Tensor,
    first: Tensor,
    counts: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """From each column's energy [B, k]: what brings it to the level of the training, [B, k]; the scale of the mark of the
    columns that lie as many before as the pool holds, [B, k]; and the sum of the power so far, float64 [B].

    powers: pool of those sums, float64 [slots]. scales: pool of the scales before, [slots, n]. first: number of each stream's
    first column [B]. counts: see History.
    """
    columns = energy.shape[1]
    power = energy / loudness.window_energy
    before = powers.index_select(0, rows)
    level = loudness.level.step(power, before, first, loudness.columns_per_second)
    own = power
    if counts is not None:
        own = power.masked_fill(torch.arange(columns, device=power.device) >= counts[:, None], 0)
    power_sum = before + own.double().sum(dim=1)
    powers.index_copy_(0, rows, power_sum)
    gain = torch.sqrt(TRAINING_POWER / level)
    if loudness.hparams.frame_level_normalization:
        carrier_rms = torch.sqrt(energy)
    elif loudness.hparams.utterance_level_normalization:
        # Carrier cells of audio of power P have the mean square P * sum(window ** 2) (Parseval).
        carrier_rms = torch.sqrt(level * loudness.window_energy)
    else:
        carrier_rms = 1 / gain
    audible = power > level * SILENCE
    scale = append_history(scales, rows, carrier_rms * loudness.strength * audible, counts)
    return gain, scale[:, :columns], power_sum


def carriers(spectra: Tensor, gain: Tensor, bins: int) -> Tensor:
    """Magnitudes of the first `bins` of each column, complex [B, k, F], times gain [B, k]."""
    return spectra[..., :bins].abs() * gain[..., None]


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
    """The first layer's window, and the columns of carrier and message whose features come with this pass.

    carrier: of the pass's columns [B, k, rows]. message: of each symbol [symbols, rows]. symbols: [B, k]. inside: whether those lie within their streams [B, k]; None: all do.
    pending, opening: pools of the columns before, [slots, P, rows, 2] and [slots, 2, rows, 1]. counts: see History.
    Returns: [B, k, rows, 2], P columns before the pass's, and [B, 2 + k, rows, 1].
    """
    pairs = torch.stack([carrier, message[symbols]], dim=3)
    if inside is not None:
        pairs.masked_fill_(~inside[:, :, None, None], 0)
    before = append_history(pending, rows, pairs, counts)[:, : carrier.shape[1]]
    return before, append_history(opening, rows, pairs[..., :1], counts)


def scaled(mark: Tensor, band: int, bins: int) -> Tensor:
    """Magnitudes [B, k, any], of which `band` count → [B, k, band]: each column has the mean square 1 over all `bins`."""
    mark = mark[:, :, :band]
    return mark * torch.rsqrt((mark.square().sum(dim=2, keepdim=True) / bins).clamp_min(1e-30))


def taken(mark: Tensor, scale: Tensor, spectra: Tensor, pool: Tensor, rows: Tensor, counts: Tensor | None) -> Tensor:
    """What the mark takes from the columns that lie as many before the pass's as the pool holds, complex [B, k, band].

    mark: [B, k, band], to be multiplied by scale [B, k]. spectra: of the pass's columns [B, k, F]. pool: of those before,
    [slots, n, band]. counts: see History. The stock leaves relu(magnitude - mark) at the old phase: a cell loses at most
    all it has.
    """
    band, columns = mark.shape[2], mark.shape[1]
    spectrum = append_history(pool, rows, spectra[..., :band], counts)[:, :columns]
    magnitude = spectrum.abs()
    loss = torch.minimum(mark * scale[..., None], magnitude)
    return -spectrum * (loss / magnitude.clamp_min(1e-30))


def waves(
    frames: Tensor,
    window: Tensor,
    overlap: Tensor,
    kept: Tensor,
    rows: Tensor,
    inside: Tensor | None,
    counts: Tensor | None,
) -> Tensor:
    """Overlap-add of frames [B, k, N], as the inverse of the STFT: [B, H + k * N / 2], the H samples before the pass's first.

    window: [N]. overlap: pool of each last frame's second half, [slots, 1, N / 2]. kept: pool of the last samples, [slots, H].
    inside: whether each half frame's samples lie in the stream [B, k]; others are zero. None: all do. counts: see History.
    """
    hop = len(window) // 2
    early, late = (frames * window).split(hop, dim=2)
    squared = window.square()
    wave = (append_history(overlap, rows, late, counts)[:, :-1] + early) / (squared[:hop] + squared[hop:])
    if inside is not None:
        wave.masked_fill_(~inside[..., None], 0)
    return append_history(kept, rows, wave.flatten(1), None if counts is None else counts * hop)


def add_marks(
    ring: Tensor, rows: Tensor, first: Tensor, marks: Tensor, index: Tensor, emitted: Tensor, power: Tensor, count: int
) -> Tensor:
    """Marked samples from position `first` [B] on, [B, count + 3], of which `emitted` [B] count; see EmbedPass.run.

    marks: [B, n], the first sample's at index [B]. power: float64 [B].
    """
    offsets = torch.arange(count, device=ring.device)
    marks = marks.gather(1, index[:, None] + offsets)
    finite = (marks.isfinite() | (offsets >= emitted[:, None])).all(dim=1, keepdim=True)
    size = ring.shape[1] - 1
    marks += ring.view(-1).take((first[:, None] + offsets) % size + rows[:, None] * (size + 1))
    return torch.cat([marks, finite.to(marks.dtype), power[:, None].view(torch.float32)], dim=1)
