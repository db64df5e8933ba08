"""Samples without a codec: PCM, G.711, and the WAV file around them."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

from gateway.audio.resampler import StreamResampler
from services.runtime.audio import to_bytes
from services.runtime.provenance import riff_info
from services.runtime.wav import ALAW, MULAW, g711_table

_RESAMPLED_INLINE = 16_384  # samples, 0.3 ms
_MAX_INLINE = 122_880  # the contract's 64 frames: 0.06 ms in 16 bits, 0.23 ms in G.711
_UNKNOWN_SIZE = 0xFFFF_FFFF  # of a stream, whose length is not known yet


@dataclass(frozen=True)
class SampleFormat:
    """How one sample is written. tag: WAV's number of it. width: bytes."""

    tag: int
    width: int
    write: Callable[[np.ndarray], bytes]


def _companded(tag: int) -> Callable[[np.ndarray], bytes]:
    def write(samples: np.ndarray) -> bytes:
        codes: np.ndarray = _codes(tag)
        return codes[np.clip(np.rint(samples * 32768.0), -32768, 32767).astype(np.int32) + 32768].tobytes()

    return write


SAMPLE_FORMATS = {
    "s16le": SampleFormat(1, 2, lambda samples: to_bytes(samples, "s16le")),
    "f32le": SampleFormat(3, 4, lambda samples: to_bytes(samples, "f32le")),
    "mulaw": SampleFormat(MULAW, 1, _companded(MULAW)),
    "alaw": SampleFormat(ALAW, 1, _companded(ALAW)),
}


class RawEncoder:
    """Samples alone."""

    def __init__(self, samples: SampleFormat, resampler: StreamResampler, content_type: str):
        self.content_type, self.sample_rate_hz = content_type, resampler.output_rate_hz
        self.samples = 0
        self._format, self._resampler = samples, resampler
        self.max_inline_samples = _RESAMPLED_INLINE if resampler.is_resampling else _MAX_INLINE

    def feed(self, samples: np.ndarray) -> list[bytes]:
        return self._write(self._resampler.feed(samples))

    def finish(self) -> list[bytes]:
        return self._write(self._resampler.finish())

    def _write(self, samples: np.ndarray) -> list[bytes]:
        self.samples += len(samples)
        return [self._format.write(samples)] if len(samples) else []


class WavEncoder(RawEncoder):
    """A WAV file. streamed: its header states the largest length, else all comes with `finish`."""

    def __init__(self, samples: SampleFormat, resampler: StreamResampler, *, streamed: bool, model: str):
        super().__init__(samples, resampler, "audio/wav")
        self._streamed, self._model = streamed, model
        self._kept: list[bytes] = []
        self._begun = False

    def feed(self, samples: np.ndarray) -> list[bytes]:
        return self._wrap(super().feed(samples))

    def finish(self) -> list[bytes]:
        pieces = self._wrap(super().finish())
        if self._streamed:
            return pieces or ([] if self._begun else [self._header(None)])
        size = sum(map(len, self._kept))
        padding = b"\0" * (size % 2)
        return [b"".join([self._header(size), *self._kept, padding])]

    def _wrap(self, pieces: list[bytes]) -> list[bytes]:
        if not self._streamed:
            self._kept += pieces
            return []
        if pieces and not self._begun:
            self._begun = True
            return [self._header(None) + b"".join(pieces)]
        return pieces

    def _header(self, data_bytes: int | None) -> bytes:
        return wav_header(self._format, self.sample_rate_hz, data_bytes, self._model)


def wav_header(samples: SampleFormat, sample_rate_hz: int, data_bytes: int | None, model: str) -> bytes:
    """What stands before the samples of a mono WAV file. data_bytes: None when it is not known yet."""
    width = samples.width
    form = struct.pack("<HHIIHH", samples.tag, 1, sample_rate_hz, sample_rate_hz * width, width, 8 * width)
    fact = b""
    if samples.tag != 1:  # other formats state the size of their extension, and how many samples there are
        form += struct.pack("<H", 0)
        fact = b"fact" + struct.pack("<II", 4, _UNKNOWN_SIZE if data_bytes is None else data_bytes // width)
    chunks = b"fmt " + struct.pack("<I", len(form)) + form + fact + riff_info(model)
    riff = _UNKNOWN_SIZE if data_bytes is None else 4 + len(chunks) + 8 + data_bytes + data_bytes % 2
    if riff > _UNKNOWN_SIZE:
        raise ValueError(f"{data_bytes} bytes of samples do not fit a WAV file (4 GiB)")
    size = _UNKNOWN_SIZE if data_bytes is None else data_bytes
    return b"RIFF" + struct.pack("<I", riff) + b"WAVE" + chunks + b"data" + struct.pack("<I", size)


@cache
def _codes(tag: int) -> np.ndarray:
    """uint8 [65536]: the G.711 code whose value is nearest to each 16-bit sample; ties go to the smaller magnitude."""
    values = np.rint(g711_table(tag).astype(np.float64) * 32768)
    order = np.argsort(values, kind="stable")
    ascending = values[order]
    wanted = np.arange(-32768, 32768)
    middles = (ascending[1:] + ascending[:-1]) / 2
    at = np.where(
        wanted >= 0, np.searchsorted(middles, wanted, side="left"), np.searchsorted(middles, wanted, side="right")
    )
    return order[at].astype(np.uint8)
