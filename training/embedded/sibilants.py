"""Whether a hiss is a hiss: how peaked what lies above 4 kHz is in a voice's s and sh, cut out by the teacher's durations.

A decoder that was asked for spectra alone makes noise out of pulses at a multiple of its frame rate. Noise has a kurtosis
of 3 (a sibilant that swells and fades, of about 5), a train of pulses ten times as much.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RATE_HZ = 24000
LABEL_SAMPLES = 960
PHONES = (61, 131)  # s, sh in the teacher's alphabet
UNVOICED = (20, 48, 50, 53, 58, 61, 62, 119, 131, 133)  # ts f h k p s t th sh ch
PERIOD, PULSE = 120, 10  # samples: 5 ms, a multiple of every frame rate in the decoder
LOUD_DB, BLOCK = 9, 120  # a sibilant is what is within so much of its loudest 5 ms
SHORTEST = 8  # blocks


def above(audio: np.ndarray, low_hz: float) -> np.ndarray:
    """What lies above `low_hz`, with a raised-cosine edge of 400 Hz; float64 [S]."""
    spectrum = np.fft.rfft(audio.astype(np.float64))
    hz = np.arange(len(spectrum)) * RATE_HZ / len(audio)
    rise = np.clip((hz - low_hz + 200) / 400, 0, 1)
    return np.fft.irfft(spectrum * (0.5 - 0.5 * np.cos(np.pi * rise)), len(audio))


def cuts(audio: np.ndarray, phones: np.ndarray) -> list[slice]:
    """The loud stretches, 40 ms and more, of the sibilants in the teacher's audio [S] with labels [S / 960]."""
    power = (above(audio, 4000)[: len(audio) // BLOCK * BLOCK] ** 2).reshape(-1, BLOCK).mean(1)
    power = np.convolve(power, np.ones(3) / 3, "same")  # of 15 ms: noise alone leaves such a level within 3 dB
    found, at, each = [], 0, LABEL_SAMPLES // BLOCK
    while at < len(phones):
        end = at
        while end < len(phones) and phones[end] == phones[at]:
            end += 1
        if phones[at] in PHONES and len(here := power[at * each : end * each]):
            first = last = int(here.argmax())
            floor = here[first] / 10 ** (LOUD_DB / 10)
            while first > 0 and here[first - 1] >= floor:
                first -= 1
            while last < len(here) - 1 and here[last + 1] >= floor:
                last += 1
            if last + 1 - first >= SHORTEST and here.max() > 1e-6:
                found.append(slice((at * each + first) * BLOCK, (at * each + last + 1) * BLOCK))
        at = end
    return found


@dataclass(frozen=True)
class Sibilant:
    """kurtosis: above 4 kHz. pulse_share: of the energy above 5 kHz that lies in the fullest 10 of each 120 samples, the
    same ones throughout (a twelfth and a little for noise). peak_share: the same where each 120 samples choose for
    themselves."""

    kurtosis: float
    pulse_share: float
    peak_share: float


def measure(audio: np.ndarray, where: list[slice]) -> list[Sibilant]:
    """The sibilants in audio [S]; where: `cuts` of the teacher's, which goes with it sample by sample."""
    found, high, higher = [], above(audio, 4000), above(audio, 5000)
    for cut in where:
        x, y = high[cut], higher[cut] ** 2
        folded = y[: len(y) // PERIOD * PERIOD].reshape(-1, PERIOD)
        around = np.concatenate([folded, folded[:, : PULSE - 1]], 1)  # a pulse may lie across the end
        sums = np.lib.stride_tricks.sliding_window_view(around, PULSE, axis=1).sum(-1)
        total = folded.sum() + 1e-20
        kurtosis = float(np.mean(x**4) / (np.mean(x**2) ** 2 + 1e-20))
        found.append(Sibilant(kurtosis, float(sums.sum(0).max() / total), float(sums.max(1).sum() / total)))
    return found
