"""Finds marks in audio that is played faster or slower, by up to 6 %, with its pitch changed or kept.

A second stage, for what the plain search finds nothing in. Where the pitch changes (resampled audio, a tape) the audio
is resampled back; where it is kept (a time stretch) columns are read at another hop. Measured on marked speech of the
bundled model, single messages are read at a speed that is wrong by 1.25 % where the pitch changes, and by 3 % where it
is kept: so few speeds are tried, and the best is refined.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import soxr
from numpy.typing import NDArray

from services.watermark.findings import Findings
from services.watermark.reader import SymbolReader, View
from services.watermark.search import Search


class Speed(NamedTuple):
    """A change of speed: the factor by which a clip is faster than it was when it was marked."""

    factor: float
    keeps_pitch: bool


COARSE = (
    *(Speed(factor, False) for factor in (0.9525, 0.9775, 1.0225, 1.0475)),
    *(Speed(factor, True) for factor in (0.955, 1.045)),
)
VIEWS = len(COARSE) + 1  # with the plain one; each is a chance to be wrong
_FINE = 0.005  # refined to this, up to twice as far from the coarse speed
_CLEAR, _PROMISING = 1e-9, 1e-3  # p-values of a window at a coarse speed that is worth refining at once, and at last
_MAX_REFINED = 2  # coarse speeds
_NEAR_S, _NEAR_MESSAGES = 1.1, 3  # seconds, messages: at each fine speed these, of the loudest, are read


def view_at(reader: SymbolReader, samples: NDArray[np.float32], rate_hz: int, speed: Speed) -> View:
    """One channel [n] at `rate_hz`, as it was before the change of speed."""
    model_hz = reader.hparams.sample_rate_hz
    target_hz = model_hz if speed.keeps_pitch else model_hz * speed.factor
    if target_hz != rate_hz and len(samples):
        samples = soxr.resample(samples, rate_hz, target_hz, "HQ")
    return reader.view(samples, target_hz, speed.factor, speed.keeps_pitch)


def search_speeds(
    reader: SymbolReader,
    samples: NDArray[np.float32],
    rate_hz: int,
    message: list[int],
    *,
    channel: int,
    offsets: int,
    stopped: Callable[[], bool],
    keys: int = 1,
) -> Findings:
    """Look for the key in one channel [n] at other speeds. keys: that are looked for in all. Raises: InterruptedError when stopped."""

    def search(part: NDArray[np.float32], speed: Speed, at_s: float = 0.0) -> Search:
        view, views = view_at(reader, part, rate_hz, speed), VIEWS * keys
        return Search(reader, view, message, channel=channel, offsets=offsets, views=views, stopped=stopped, at_s=at_s)

    def refined(at_s: float, speed: Speed) -> Findings:
        length_s = max(_NEAR_S, _NEAR_MESSAGES * reader.hparams.message_seconds)
        first = max(0, int((at_s - length_s / 2) * rate_hz))
        near = samples[first : first + int(length_s * rate_hz)]

        def misfit(step: float) -> tuple[float, float]:
            # What was read at the coarse speed stays at the centre of a column, so that one offset is enough.
            fine = Speed(speed.factor + step, speed.keeps_pitch)
            p_value, share, _ = search(near, fine, at_s - first / rate_hz).glance(_NEAR_MESSAGES)
            return p_value, -share

        tried = {step: misfit(step) for step in (-_FINE, _FINE)}
        better = min(tried, key=lambda step: tried[step])
        tried |= {step: misfit(step) for step in (0.0, 2 * better)}
        best = min(tried, key=lambda step: tried[step])
        return search(samples, Speed(speed.factor + best, speed.keeps_pitch), at_s).run()

    unclear = []
    for speed in COARSE:
        p_value, _, at_s = search(samples, speed).glance()
        if p_value > _CLEAR:
            unclear.append((p_value, at_s, speed))
        elif (findings := refined(at_s, speed)).marks:
            return findings
    for p_value, at_s, speed in sorted(unclear)[:_MAX_REFINED]:
        if p_value > _PROMISING:
            break
        if (findings := refined(at_s, speed)).marks:
            return findings
    return Findings()
