"""The kernels around the nets against their plain twins, in Triton's interpreter, or compiled (`-m gpu`)."""

from __future__ import annotations

import pytest
import torch

from services.watermark.hparams import Hparams
from services.watermark.kernels import signal, signal_plain
from services.watermark.level import FixedLevel, RunningLevel


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    if request.param == "cpu" and torch.cuda.is_available():
        pytest.skip("the kernels are compiled here, not interpreted")
    torch.manual_seed(0)
    return torch.device(request.param)


def numbers(device, *values) -> torch.Tensor:
    return torch.tensor(values, device=device)


ROWS = (3, 0, 2)


def test_ring(device):
    """Round its end, before a stream's begin and beyond its end, at positions that need 64 bits."""
    size, far = 3000, 3000 * (1 << 33) + 2900
    rows, first, end = numbers(device, *ROWS), numbers(device, 0, 2900, far), numbers(device, 1500, 3100, far + 2000)
    ours = torch.randn(5, size + 1, device=device)
    theirs, samples = ours.clone(), torch.randn(3, 2500, device=device)
    for ring, each in ((ours, signal), (theirs, signal_plain)):
        each.write_ring(ring, rows, first, end, samples)
    assert torch.equal(ours[:, :size], theirs[:, :size])
    begin = numbers(device, -700, 2000, far - 500)
    got, wanted = (
        each.read_ring(ring, rows, begin, end, 2600) for ring, each in ((ours, signal), (theirs, signal_plain))
    )
    assert torch.equal(got, wanted) and not got[0, :700].any() and got[0, 700:].any()


@pytest.mark.parametrize("n_fft", [64, 3000])
def test_frames(device, n_fft):
    """A stream's first columns, some in its middle, and its last with the mirrored end."""
    window, hop, columns = torch.hann_window(n_fft, device=device), n_fft // 2, 3
    samples = torch.randn(3, columns * hop + n_fft + 40, device=device)
    begin = numbers(device, -hop, 10 * hop, 2 * hop)
    length = numbers(device, 1 << 40, 1 << 40, 4 * hop + 7)
    mirror = 2 * (length // n_fft + 1) * n_fft - 2
    given = (samples, begin - numbers(device, 30, 20, 10), begin, length, mirror, window, columns)
    got, wanted = signal.frames(*given), signal_plain.frames(*given)
    assert got.shape == wanted.shape == (3, columns, n_fft)
    assert torch.equal(got, wanted)


def near(got, wanted) -> None:
    assert got.shape == wanted.shape and got.dtype == wanted.dtype
    assert (got - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize(("columns", "brought"), [(1, None), (2, [2, 1, 2]), (5, [1, 5, 3]), (9, None)])
@pytest.mark.parametrize("cut", [True, False])
def test_windows_and_what_the_mark_takes(device, columns, brought, cut):
    rows, bins, band = numbers(device, *ROWS), 300, 270
    counts = None if brought is None else numbers(device, *brought)
    inside = torch.rand(3, columns, device=device) < 0.5 if cut else None
    spectra = torch.randn(3, columns, 400, device=device, dtype=torch.complex64)
    near(signal.energies(spectra), signal_plain.energies(spectra))
    carrier, message = torch.rand(3, columns, bins, device=device), torch.randn(5, bins, device=device)
    symbols = torch.randint(5, (3, columns), device=device)
    near(signal.carriers(spectra, carrier[..., 0], bins), signal_plain.carriers(spectra, carrier[..., 0], bins))
    pools = [torch.randn(5, 3, bins, 2, device=device), torch.randn(5, 2, bins, 1, device=device)]
    theirs = [pool.clone() for pool in pools]
    got = signal.open_windows(carrier, message, symbols, inside, *pools, rows, counts)
    wanted = signal_plain.open_windows(carrier, message, symbols, inside, *theirs, rows, counts)
    for ours, known in zip((*got, *pools), (*wanted, *theirs), strict=True):
        assert torch.equal(ours, known)
    mark, scale = torch.rand(3, columns, bins, device=device), torch.rand(3, columns + 2, device=device)[:, :columns]
    near(signal.scaled(mark, band, 513), signal_plain.scaled(mark, band, 513))
    pool = torch.randn(5, 6, band, device=device, dtype=torch.complex64)
    pool[0, 0, 3] = 0
    known = pool.clone()
    got = signal.taken(mark[..., :band], scale, spectra, pool, rows, counts)
    near(got, signal_plain.taken(mark[..., :band], scale, spectra, known, rows, counts))
    assert torch.equal(pool, known)


@pytest.mark.parametrize(("columns", "brought"), [(1, None), (2, [2, 1, 2]), (5, [1, 5, 3]), (14, None)])
@pytest.mark.parametrize("level", [FixedLevel(), RunningLevel()])
@pytest.mark.parametrize("by", ["frame_level_normalization", "utterance_level_normalization", ""])
def test_levels(device, columns, brought, level, by):
    """A stream's first columns, and silence among them."""
    names = ("frame_level_normalization", "utterance_level_normalization")
    shape = Hparams(**{name: name == by for name in names})
    loudness = signal_plain.Loudness(level, shape, 1536.0, 21.5, 0.0045)
    rows, first = numbers(device, *ROWS), numbers(device, 0, 40, 1 << 33)
    counts = None if brought is None else numbers(device, *brought)
    energy = 4 * torch.rand(3, columns, device=device)
    energy[1] *= 1e-4
    pools = [torch.rand(5, device=device, dtype=torch.float64), torch.rand(5, 6, device=device)]
    pools[0][3] = 0
    theirs = [pool.clone() for pool in pools]
    got = signal.levels(energy, loudness, *pools, rows, first, counts)
    wanted = signal_plain.levels(energy, loudness, *theirs, rows, first, counts)
    for ours, known in zip((*got, *pools), (*wanted, *theirs), strict=True):
        near(ours, known)


@pytest.mark.parametrize(("columns", "brought"), [(1, None), (2, [2, 1, 2]), (5, [1, 5, 3]), (9, None)])
@pytest.mark.parametrize(("n_fft", "kept"), [(64, 20), (64, 40), (3000, 1500)])
def test_waves(device, columns, brought, n_fft, kept):
    rows, hop = numbers(device, *ROWS), n_fft // 2
    counts = None if brought is None else numbers(device, *brought)
    window, frames = torch.hann_window(n_fft, device=device), torch.randn(3, columns, n_fft, device=device)
    pools = [torch.randn(5, 1, hop, device=device), torch.randn(5, kept, device=device)]
    theirs = [pool.clone() for pool in pools]
    for inside in (None, torch.rand(3, columns, device=device) < 0.5):
        got = signal.waves(frames, window, *pools, rows, inside, counts)
        near(got, signal_plain.waves(frames, window, *theirs, rows, inside, counts))
        for ours, known in zip(pools, theirs, strict=True):
            near(ours, known)


def test_what_is_no_number_stays_none(device):
    """So that it is seen at the end: kernels take the lesser of NaN and a number for the number, if one lets them."""
    mark = torch.rand(3, 2, 70, device=device) + 0.1
    mark[0, 1, 3] = torch.nan
    assert torch.isnan(signal.scaled(mark, 64, 64)[0, 1]).all()
    spectra, pool = (torch.randn(n, 6, 64, device=device, dtype=torch.complex64) for n in (3, 5))
    scale = torch.ones(3, 2, device=device)
    taken = signal.taken(mark[:, :, :64].contiguous(), scale, spectra[:, :2], pool, numbers(device, *ROWS), None)
    assert torch.isnan(torch.view_as_real(taken)).all(-1).nonzero().tolist() == [[0, 1, 3]]
    loudness = signal_plain.Loudness(RunningLevel(), Hparams(), 1536.0, 21.5, 0.0045)
    powers, scales = torch.full((5,), torch.nan, device=device, dtype=torch.float64), torch.rand(5, 6, device=device)
    energy, first = torch.rand(3, 2, device=device), numbers(device, 1, 1, 1)
    assert torch.isnan(signal.levels(energy, loudness, powers, scales, numbers(device, *ROWS), first, None)[0]).all()


def test_marks(device):
    """And what is not finite is seen, where it counts."""
    rows, ring = numbers(device, *ROWS), torch.randn(5, 3001, device=device)
    marks, power = torch.randn(3, 2400, device=device), torch.rand(3, device=device, dtype=torch.float64)
    first, index, emitted = numbers(device, 0, 2900, 5990), numbers(device, 0, 7, 99), numbers(device, 2200, 50, 0)
    marks[1, 7 + 49], marks[2, 99] = torch.inf, torch.nan
    given = (ring, rows, first, marks, index, emitted, power, 2300)
    got, wanted = signal.add_marks(*given), signal_plain.add_marks(*given)
    assert got.shape == (3, 2303) and got[:, 2300].tolist() == [1.0, 0.0, 1.0]
    assert torch.equal(got.nan_to_num(), wanted.nan_to_num())
