import numpy as np
import pytest

from services.watermark.resampler import Kernel, Resampler

RATES = [(24000, 44100), (44100, 24000), (24000, 16000), (24000, 24000)]


def through(kernel, samples, cut):
    stream = Resampler(kernel)
    pieces = [stream.push(samples[i : i + cut]) for i in range(0, len(samples), cut)]
    return np.concatenate([*pieces, stream.push(samples[:0], last=True)])


@pytest.mark.parametrize("rates", RATES)
@pytest.mark.parametrize("cut", [1, 80, 1921])
def test_cuts_change_nothing(rates, cut):
    kernel = Kernel(*rates)
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
    got = Resampler(Kernel(*rates)).push(sine[0].astype(np.float32), last=True)
    inner = slice(300, len(sine[1]) - 300)
    assert np.abs(got[: len(sine[1])] - sine[1])[inner].max() < 1e-4


def test_what_the_lower_rate_cannot_hold_is_gone():
    tone = np.sin(2 * np.pi * 13000 * np.arange(11025) / 44100).astype(np.float32)
    got = Resampler(Kernel(44100, 24000)).push(tone, last=True)
    assert np.abs(got[300:-300]).max() < 1e-4


@pytest.mark.parametrize("rates", RATES)
def test_an_empty_stream_gives_nothing(rates):
    assert len(Resampler(Kernel(*rates)).push(np.zeros(0, np.float32), last=True)) == 0
