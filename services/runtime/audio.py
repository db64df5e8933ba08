"""Audio bytes: clips that callers send become float32 samples, samples become PCM bytes and WAV files.

Knows numpy, no proto and no model. soxr is imported only by `resample`. Field names in errors are
those of csm.common.v1.AudioClip; a servicer puts the path to its clip in front.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Literal

import numpy as np

Encoding = Literal["s16le", "f32le"]

MIN_RATE_HZ = 8_000
MAX_RATE_HZ = 48_000
MAX_CHANNELS = 2
MAX_CHUNKS = 256  # of a WAV file; those of editors have a few dozen
# Float samples lie in [-1, 1]. Resamplers overshoot a little; beyond this somebody sent integers as floats.
MAX_PEAK = 4.0

_BYTES = {"s16le": 2, "f32le": 4}
_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
# Bytes 2–15 of the subformat GUID of WAVE_FORMAT_EXTENSIBLE; the first two are the plain format tag.
_GUID_TAIL = bytes.fromhex("000000001000800000aa00389b71")
# Writers that stream do not know the length and put the largest number there, or one near half of it.
_ANY_SIZE = 0xFFFF_FFFF
_UNKNOWN_SIZE = 0x7FFF_0000


class AudioError(ValueError):
    """A clip cannot be used. `field` is its path inside an AudioClip, `description` says the limit."""

    def __init__(self, field: str, description: str):
        super().__init__(f"{field}: {description}")
        self.field, self.description = field, description


@dataclass(frozen=True)
class Clip:
    """Mono audio. samples: float32 [T], T ≥ 1, finite."""

    samples: np.ndarray
    sample_rate_hz: int

    @property
    def duration_s(self) -> float:
        return len(self.samples) / self.sample_rate_hz


def read_raw(data: bytes, *, encoding: Encoding, sample_rate_hz: int, channels: int = 1, max_duration_s: float) -> Clip:
    """Interleaved samples without a container. Stereo is averaged.

    Raises: AudioError.
    """
    fields = ("raw.format.sample_rate_hz", "raw.format.channels", "raw.data")
    return _clip(data, encoding, sample_rate_hz, channels, max_duration_s, fields)


def read_wav(data: bytes, *, max_duration_s: float) -> Clip:
    """A WAV file: PCM 16 bit or float 32 bit. Stereo is averaged.

    Raises: AudioError.
    """
    if len(data) < 12 or data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        raise AudioError("wav", "not a WAV file (no RIFF/WAVE header)")
    layout: tuple[Encoding, int, int] | None = None
    position = 12
    for _ in range(MAX_CHUNKS):
        if position + 8 > len(data):
            raise AudioError("wav", "truncated: no data chunk")
        name, size = data[position : position + 4], struct.unpack_from("<I", data, position + 4)[0]
        start = position + 8
        if name == b"data":
            if layout is None:
                raise AudioError("wav", "the data chunk comes before any fmt chunk")
            if size >= _UNKNOWN_SIZE:
                size = len(data) - start
            if start + size > len(data):
                raise AudioError("wav", f"truncated: {size} bytes of samples announced, {len(data) - start} there")
            encoding, sample_rate_hz, channels = layout
            samples = data[start : start + size]
            return _clip(samples, encoding, sample_rate_hz, channels, max_duration_s, ("wav", "wav", "wav"))
        if start + size > len(data):
            raise AudioError("wav", f"truncated inside its {name!r} chunk")
        if name == b"fmt ":
            layout = _fmt_chunk(data[start : start + size])
        position = start + size + size % 2  # chunks start at even offsets
    raise AudioError("wav", f"has no data chunk among its first {MAX_CHUNKS}")


def resample(clip: Clip, sample_rate_hz: int) -> Clip:
    """The same clip at another rate (soxr, high quality)."""
    if clip.sample_rate_hz == sample_rate_hz:
        return clip
    import soxr

    samples = soxr.resample(clip.samples, clip.sample_rate_hz, sample_rate_hz)
    # A clip of a few samples may resample to none; a clip always has at least one.
    return Clip(samples if len(samples) else clip.samples[:1], sample_rate_hz)


def to_bytes(samples: np.ndarray, encoding: Encoding) -> bytes:
    """Float samples [T] as little-endian bytes; s16le clips to full scale and rounds."""
    if encoding == "f32le":
        return samples.astype("<f4", copy=False).tobytes()
    return np.clip(np.rint(samples * 32768.0), -32768, 32767).astype("<i2").tobytes()


def from_bytes(data: bytes, encoding: Encoding) -> np.ndarray:
    """Samples that another stage sent, as float32 [T]. Raises: ValueError for a broken-off sample."""
    if encoding == "f32le":
        return np.frombuffer(data, "<f4").astype(np.float32, copy=False)
    return np.frombuffer(data, "<i2").astype(np.float32) / 32768.0


def wav_header(encoding: Encoding, sample_rate_hz: int, channels: int = 1, data_bytes: int | None = None) -> bytes:
    """What stands before the samples of a WAV file. data_bytes: None when it is not known yet (a stream)."""
    tag, width = (_PCM if encoding == "s16le" else _FLOAT), _BYTES[encoding]
    block_bytes = channels * width
    fmt = struct.pack("<HHIIHH", tag, channels, sample_rate_hz, sample_rate_hz * block_bytes, block_bytes, 8 * width)
    fact = b""
    if tag != _PCM:  # other formats state the size of their extension, and how many samples there are
        fmt += struct.pack("<H", 0)
        fact = b"fact" + struct.pack("<II", 4, _ANY_SIZE if data_bytes is None else data_bytes // block_bytes)
    chunks = b"fmt " + struct.pack("<I", len(fmt)) + fmt + fact
    riff_bytes = _ANY_SIZE if data_bytes is None else 4 + len(chunks) + 8 + data_bytes
    if riff_bytes > _ANY_SIZE:
        raise ValueError(f"{data_bytes} bytes of samples do not fit a WAV file (4 GiB)")
    data_size = _ANY_SIZE if data_bytes is None else data_bytes
    return b"RIFF" + struct.pack("<I", riff_bytes) + b"WAVE" + chunks + b"data" + struct.pack("<I", data_size)


def wav_bytes(samples: np.ndarray, sample_rate_hz: int, encoding: Encoding = "s16le") -> bytes:
    """Mono float samples [T] as a whole WAV file."""
    data = to_bytes(samples, encoding)
    return wav_header(encoding, sample_rate_hz, 1, len(data)) + data


def _fmt_chunk(fmt: bytes) -> tuple[Encoding, int, int]:
    """(encoding, sample_rate_hz, channels) that a fmt chunk states."""
    if len(fmt) < 16:
        raise AudioError("wav", f"its fmt chunk has {len(fmt)} bytes, not 16 or more")
    tag, channels, sample_rate_hz, _, block_bytes, bits = struct.unpack_from("<HHIIHH", fmt)
    if tag == _EXTENSIBLE and len(fmt) >= 40 and fmt[26:40] == _GUID_TAIL:
        tag = struct.unpack_from("<H", fmt, 24)[0]
    encodings: dict[tuple[int, int], Encoding] = {(_PCM, 16): "s16le", (_FLOAT, 32): "f32le"}
    encoding = encodings.get((tag, bits))
    if encoding is None:
        raise AudioError("wav", f"must be PCM 16 bit or float 32 bit, not format {tag} with {bits} bit")
    if block_bytes != channels * _BYTES[encoding]:
        raise AudioError("wav", f"its fmt chunk contradicts itself: {channels} channels in {block_bytes} bytes")
    return encoding, sample_rate_hz, channels


def _clip(
    data: bytes,
    encoding: Encoding,
    sample_rate_hz: int,
    channels: int,
    max_duration_s: float,
    fields: tuple[str, str, str],
) -> Clip:
    """Check every limit from the sizes alone, then convert. fields: names of rate, channels and data in errors."""
    rate_field, channels_field, data_field = fields
    if not MIN_RATE_HZ <= sample_rate_hz <= MAX_RATE_HZ:
        raise AudioError(rate_field, f"must be {MIN_RATE_HZ} to {MAX_RATE_HZ} Hz, not {sample_rate_hz} Hz")
    if not 1 <= channels <= MAX_CHANNELS:
        raise AudioError(channels_field, f"must have 1 or 2 channels, not {channels}")
    if not data:
        raise AudioError(data_field, "holds no samples")
    block_bytes = _BYTES[encoding] * channels
    if len(data) % block_bytes:
        raise AudioError(data_field, f"{len(data)} bytes is no whole number of {block_bytes}-byte sample groups")
    duration_s = len(data) / block_bytes / sample_rate_hz
    if duration_s > max_duration_s:
        raise AudioError(data_field, f"lasts {duration_s:.2f} s, at most {max_duration_s:g} s are taken")
    samples = from_bytes(data, encoding)
    peak = float(np.max(np.abs(samples)))  # NaN when any sample is
    if not np.isfinite(peak):
        raise AudioError(data_field, "has samples that are NaN or infinite")
    if peak > MAX_PEAK:
        raise AudioError(data_field, f"float samples must lie in [-1, 1], found {peak:g}")
    if channels > 1:
        samples = samples.reshape(-1, channels).mean(axis=1, dtype=np.float32)
    return Clip(samples, sample_rate_hz)
