"""The measure of a hiss, and the distance that the codec is taught it by, tell noise from pulses."""

import numpy as np
import pytest
import torch

RATE_HZ = 24000


@pytest.fixture
def recipe(recipe_modules):
    return recipe_modules("sibilants", "distances")


def hiss(seed: int) -> np.ndarray:
    """0.4 s of which the middle half is noise: an s with silence around it."""
    audio = np.random.default_rng(seed).standard_normal(9600).astype(np.float32) * 0.02
    audio[:2400] *= 0.001
    audio[7200:] *= 0.001
    return audio


def buzz() -> np.ndarray:
    """The same energy as pulses of one sample each 5 ms."""
    audio = np.zeros(9600, np.float32)
    audio[2400:7200:120] = 0.02 * 120**0.5
    return audio


PHONES = np.array([43] * 2 + [61] * 6 + [43] * 2, np.uint8)  # 40 ms each


def test_noise_is_flat_and_pulses_are_not(recipe):
    sibilants, _ = recipe
    where = sibilants.cuts(hiss(0), PHONES)
    assert len(where) == 1 and where[0].start >= 1920 and where[0].stop <= 7680
    (noise,), (pulses,) = sibilants.measure(hiss(1), where), sibilants.measure(buzz(), where)
    assert noise.kurtosis == pytest.approx(3, abs=0.8)
    assert noise.pulse_share < 0.13 and noise.peak_share < 0.35
    assert pulses.kurtosis > 15 and pulses.pulse_share > 0.6 and pulses.peak_share > 0.6


def test_only_sibilants_are_cut(recipe):
    sibilants, _ = recipe
    assert sibilants.cuts(hiss(0), np.full(10, 43, np.uint8)) == []
    assert sibilants.cuts(hiss(0) * 0, PHONES) == []


def test_another_draw_of_noise_is_nearer_than_pulses(recipe):
    _, distances = recipe
    distance = distances.TextureDistance()
    teacher, other, pulses = (torch.from_numpy(x)[None, None] for x in (hiss(0), hiss(1), buzz()))
    apart = distance(teacher, pulses).item()
    assert distance(teacher, teacher).item() == 0
    assert distance(teacher, other).item() < 0.4 * apart


def test_phases_of_noise_are_not_asked_for(recipe):
    _, distances = recipe
    phases = distances.PhaseDistance()
    teacher, other = (torch.from_numpy(x)[None, None] for x in (hiss(0), hiss(1)))
    assert phases(teacher, other).item() > 0.5
    assert phases(teacher, other, voiced=torch.zeros(1, 10)).item() == 0
