"""The rate that a caller asked for."""

from __future__ import annotations

from functools import cache

import numpy as np
import soxr
from numpy.lib.stride_tricks import sliding_window_view

from services.runtime.polyphase import PolyphaseFilter

# Shares of the lower rate's half: what passes unchanged, and from where on nothing is left (-90 dB).
_PASS_EDGE, _STOP_EDGE = 0.9, 1.0
# A filter is made once a process and kept. Of every rate that a caller may ask for it would be milliseconds and a megabyte.
COMMON_RATES_HZ = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
_MIN_BLOCK = 32  # outputs of a row: fewer leave the matrix mostly zeros or its rows short
# Multiplications of one product. From 262,144 on OpenBLAS spreads it over threads, which on a busy machine wait for each
# other for milliseconds.
_MAX_PRODUCT = 200_000


class StreamResampler:
    """Passes everything up to 0.9 of the lower rate's half. Equal rates pass through.

    Holds back half its filter: 2.4 ms at 24 to 48 kHz, 7.2 ms at 8 kHz. Uncommon rates are soxr's (high quality), in
    blocks of up to 76 ms.
    """

    def __init__(self, input_rate_hz: int, output_rate_hz: int):
        self.output_rate_hz = output_rate_hz
        self._stream: _Polyphase | _Soxr | None = None
        if input_rate_hz != output_rate_hz:
            kind = _Polyphase if output_rate_hz in COMMON_RATES_HZ else _Soxr
            self._stream = kind(input_rate_hz, output_rate_hz)

    @property
    def is_resampling(self) -> bool:
        """False for equal rates."""
        return self._stream is not None

    def feed(self, samples: np.ndarray) -> np.ndarray:
        """float32 [T] → float32 [T']; some samples may be held back."""
        return samples if self._stream is None else self._stream.feed(samples)

    def finish(self) -> np.ndarray:
        """What is held back."""
        return np.zeros(0, np.float32) if self._stream is None else self._stream.finish()


class _Polyphase:
    """Blocks of outputs, each one row of small matrix products. How the input was cut changes nothing."""

    def __init__(self, input_rate_hz: int, output_rate_hz: int):
        self._filter, self._matrix, self._step = _block(input_rate_hz, output_rate_hz)
        self._rows = max(1, _MAX_PRODUCT // self._matrix.size)
        # Input from `lookback` before the block of the next output on: at first the silence before the speech.
        self._held = np.zeros(self._filter.lookback, np.float32)
        self._received = self._sent = 0  # input and output samples

    def feed(self, samples: np.ndarray) -> np.ndarray:
        self._received += len(samples)
        return self._outputs(samples, int(self._filter.complete_outputs(self._received)))

    def finish(self) -> np.ndarray:
        return self._outputs(np.zeros(0, np.float32), self._filter.outputs(self._received))

    def _outputs(self, samples: np.ndarray, end: int) -> np.ndarray:
        """Those from the next one to `end`. What an input that has not come yet would give is cut off."""
        length, size = self._matrix.shape
        held = np.concatenate([self._held, samples])
        if end == self._sent:
            self._held = held
            return held[:0]
        first, blocks = self._sent // size, -(-end // size) - self._sent // size
        blocks = -(-blocks // self._rows) * self._rows
        missing = max(0, (blocks - 1) * self._step + length - len(held))
        windows = sliding_window_view(np.pad(held, (0, missing)), length)[:: self._step][:blocks]
        # In float64, so that a sum's order, which differs with the place of its row, does not show in float32.
        groups = windows.astype(np.float64).reshape(-1, self._rows, length)  # [G, R, L]
        outputs = (groups @ self._matrix).reshape(-1)
        outputs = outputs[self._sent - first * size : end - first * size].astype(np.float32)
        self._held = held[(end // size - first) * self._step :].copy()
        self._sent = end
        return outputs


class _Soxr:
    def __init__(self, input_rate_hz: int, output_rate_hz: int):
        self._stream = soxr.ResampleStream(input_rate_hz, output_rate_hz, 1, dtype="float32")

    def feed(self, samples: np.ndarray) -> np.ndarray:
        done: np.ndarray = self._stream.resample_chunk(samples)
        return done

    def finish(self) -> np.ndarray:
        done: np.ndarray = self._stream.resample_chunk(np.zeros(0, np.float32), last=True)
        return done


@cache
def _block(input_rate_hz: int, output_rate_hz: int) -> tuple[PolyphaseFilter, np.ndarray, int]:
    """(filter, float64 [L, N]: a block of N outputs, input samples from one block to the next). Takes milliseconds."""
    polyphase = PolyphaseFilter(input_rate_hz, output_rate_hz, pass_edge=_PASS_EDGE, stop_edge=_STOP_EDGE)
    periods = -(-_MIN_BLOCK // polyphase.up)
    return polyphase, polyphase.block_matrix(periods).astype(np.float64), periods * polyphase.down
