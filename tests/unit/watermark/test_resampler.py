import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view

from services.runtime.polyphase import PolyphaseFilter
from services.watermark.resampler import FilterBank, polyphase_filter

RATES = [(24000, 44100), (44100, 24000), (24000, 16000), (24000, 24000)]


class Resampler:
    """One stream through a kernel: what comes out does not depend on how the input was cut."""

    def __init__(self, kernel: PolyphaseFilter):
        self._kernel = kernel
        # Input from position `_start` on; the silence before the stream lets the first taps reach back.
        self._start = -max(0, kernel.half - 1)
        self._held = np.zeros(-self._start, np.float32)
        self._received = 0
        self._sent = 0

    def push(self, samples: np.ndarray, last: bool = False) -> np.ndarray:
        """Take input [n], give the output [m] that is ready; with `last`, all the rest."""
        kernel = self._kernel
        if not kernel.half:
            return samples
        self._received += len(samples)
        total = kernel.outputs(self._received)
        tail = np.zeros(kernel.half if last else 0, np.float32)
        self._held = np.concatenate([self._held, samples, tail])
        # Output m needs inputs up to floor(m * down / up) + half.
        known = self._start + len(self._held) - kernel.half
        end = max(self._sent, min(total, kernel.outputs(known)) if known > 0 else 0)
        position = np.arange(self._sent, end, dtype=np.int64) * kernel.down
        self._sent = end
        if not len(position):
            return np.zeros(0, np.float32)
        first = position // kernel.up - kernel.half + 1 - self._start
        windows = sliding_window_view(self._held, 2 * kernel.half)[first]
        output = np.einsum("mk,mk->m", windows, kernel.taps[position % kernel.up], optimize=False)
        # Keep what the next output reaches back to.
        keep = end * kernel.down // kernel.up - kernel.half + 1
        drop = min(max(0, keep - self._start), len(self._held))
        self._held, self._start = self._held[drop:].copy(), self._start + drop
        return output.astype(np.float32, copy=False)


def through(kernel, samples, cut):
    stream = Resampler(kernel)
    pieces = [stream.push(samples[i : i + cut]) for i in range(0, len(samples), cut)]
    return np.concatenate([*pieces, stream.push(samples[:0], last=True)])


@pytest.mark.parametrize("rates", RATES)
@pytest.mark.parametrize("cut", [1, 80, 1921])
def test_cuts_change_nothing(rates, cut):
    kernel = polyphase_filter(*rates)
    samples = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
    whole = Resampler(kernel).push(samples, last=True)
    pieces = through(kernel, samples, cut)
    assert len(whole) == len(pieces) == -(-5000 * rates[1] // rates[0])
    assert np.abs(whole - pieces).max() < 1e-6


@pytest.mark.parametrize("rates", RATES)
@pytest.mark.parametrize("share", [0.01, 0.3, 0.92])
def test_a_tone_keeps_place_and_height(rates, share):
    tone_hz = share * min(rates) / 2
    sine = [np.sin(2 * np.pi * tone_hz * np.arange(rate // 4) / rate) for rate in rates]
    got = Resampler(polyphase_filter(*rates)).push(sine[0].astype(np.float32), last=True)
    inner = slice(300, len(sine[1]) - 300)
    assert np.abs(got[: len(sine[1])] - sine[1])[inner].max() < 1e-4


def test_what_the_lower_rate_cannot_hold_is_gone():
    tone = np.sin(2 * np.pi * 13000 * np.arange(11025) / 44100).astype(np.float32)
    got = Resampler(polyphase_filter(44100, 24000)).push(tone, last=True)
    assert np.abs(got[300:-300]).max() < 1e-4


@pytest.mark.parametrize("rates", RATES)
def test_an_empty_stream_gives_nothing(rates):
    assert len(Resampler(polyphase_filter(*rates)).push(np.zeros(0, np.float32), last=True)) == 0


@pytest.mark.parametrize("rates", RATES)
@pytest.mark.parametrize("first", [0, 1, 500, 1234])
def test_windows_give_what_the_stream_gives_at_any_place(rates, first):
    # `first`: the output from which on a window's outputs are wanted.
    kernel = polyphase_filter(*rates)
    bank, count = FilterBank(kernel), 333
    clips = np.random.default_rng(0).standard_normal((2, 4000)).astype(np.float32)
    block, skipped = divmod(first, bank.up)
    padded = np.pad(clips, ((0, 0), (bank.lookback, 0)))
    windows = padded[:, block * bank.down :][:, : bank.input_length(bank.blocks(count))]
    got = bank(torch.from_numpy(windows))[:, skipped : skipped + count].numpy()
    for row, clip in zip(got, clips, strict=True):
        assert np.abs(row - Resampler(kernel).push(clip)[first : first + count]).max() < 1e-5
