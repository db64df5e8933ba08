"""The rate that a caller asked for, beside soxr of a whole clip."""

import numpy as np
import pytest
import soxr

from gateway.audio.resampler import StreamResampler

RATE = 24_000
RATES = [8_000, 11_025, 16_000, 22_050, 44_100, 48_000]


def through(samples, rate_hz, piece=1_920):
    stream = StreamResampler(RATE, rate_hz)
    pieces = [stream.feed(samples[at : at + piece]) for at in range(0, len(samples), piece)]
    return np.concatenate([*pieces, stream.finish()])


def noise(up_to_hz, seconds=2):
    """White up to a frequency, at a peak of 1."""
    spectrum = np.fft.rfft(np.random.default_rng(0).standard_normal(seconds * RATE))
    spectrum[np.fft.rfftfreq(seconds * RATE, 1 / RATE) > up_to_hz] = 0
    samples = np.fft.irfft(spectrum)
    return (samples / np.abs(samples).max()).astype(np.float32)


def decibel(samples, beside):
    return 10 * np.log10(np.mean(samples**2) / np.mean(beside**2))


@pytest.mark.parametrize("rate_hz", RATES)
def test_what_both_rates_hold_comes_out_as_by_soxr(rate_hz):
    said = noise(0.88 * min(RATE, rate_hz) / 2)
    wanted, got = soxr.resample(said, RATE, rate_hz), through(said, rate_hz)
    assert len(got) == len(wanted)
    inner = slice(1_000, -1_000)
    assert decibel(wanted[inner] - got[inner], wanted[inner]) < -75


@pytest.mark.parametrize("rate_hz", RATES)
@pytest.mark.parametrize("share", [0.05, 0.5, 0.8, 0.9])
def test_the_pass_band_is_flat(rate_hz, share):
    tone_hz = share * min(RATE, rate_hz) / 2
    tone = np.sin(2 * np.pi * tone_hz * np.arange(RATE) / RATE).astype(np.float32)
    got = through(tone, rate_hz)[rate_hz // 8 : -rate_hz // 8]
    assert abs(decibel(got, np.float64(0.5) ** 0.5)) < 0.01


@pytest.mark.parametrize("rate_hz", [rate for rate in RATES if rate < RATE])
def test_what_the_lower_rate_cannot_hold_is_gone(rate_hz):
    for tone_hz in np.linspace(rate_hz / 2, RATE / 2 - 1, 12):
        tone = np.sin(2 * np.pi * tone_hz * np.arange(RATE) / RATE).astype(np.float32)
        got = through(tone, rate_hz)[rate_hz // 8 : -rate_hz // 8]
        assert decibel(got, np.float64(0.5) ** 0.5) < -80


@pytest.mark.parametrize("rate_hz", [rate for rate in RATES if rate > RATE])
def test_a_higher_rate_has_no_images(rate_hz):
    got = through(noise(0.9 * RATE / 2), rate_hz)[: 2 * rate_hz]
    power = np.abs(np.fft.rfft(got * np.blackman(len(got)))) ** 2
    above = np.fft.rfftfreq(len(got), 1 / rate_hz) > 1.0 * RATE / 2
    assert 10 * np.log10(power[above].sum() / power.sum()) < -80


@pytest.mark.parametrize("rate_hz", [*RATES, RATE, 47_999])
def test_cuts_change_nothing(rate_hz):
    said = noise(8_000, seconds=1)[: RATE // 4 - 77]
    whole = through(said, rate_hz, piece=len(said))
    for piece in (7, 80, 1_921):
        assert np.array_equal(through(said, rate_hz, piece), whole)
    assert len(whole) in (-(-len(said) * rate_hz // RATE), round(len(said) * rate_hz / RATE))


@pytest.mark.parametrize("rate_hz", [*RATES, RATE, 47_999])
@pytest.mark.parametrize("count", [0, 1, 5])
def test_a_few_samples_have_the_right_length(rate_hz, count):
    got = through(np.ones(count, np.float32), rate_hz)
    assert got.dtype == np.float32
    assert len(got) in (-(-count * rate_hz // RATE), round(count * rate_hz / RATE))
