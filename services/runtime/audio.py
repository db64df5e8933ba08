"""Audio bytes: clips that callers send become float32 samples, samples become PCM bytes and WAV files.

Knows numpy, no proto and no model. soxr is imported only by `resample`. Field names in errors are
those of csm.common.v1.AudioClip; a servicer puts the path to its clip in front.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from services.runtime import wav

Encoding = Literal["s16le", "f32le"]
ClipEncoding = Literal["s16le", "f32le", "mulaw", "alaw"]

MIN_RATE_HZ = 8_000
MAX_RATE_HZ = 48_000  # of what we send
MAX_CLIP_RATE_HZ = 192_000  # of what we are sent
MAX_CHANNELS = 8
# Float samples lie in [-1, 1]. Resamplers overshoot a little; beyond this they are integers sent as floats.
MAX_PEAK = 4.0

_BYTES = {"s16le": 2, "f32le": 4, "mulaw": 1, "alaw": 1}
_PCM, _FLOAT = 1, 3
_ANY_SIZE = 0xFFFF_FFFF  # of a stream, whose length is not known yet


class AudioError(ValueError):
    """A clip cannot be used. `field` is its path inside an AudioClip, `description` says the limit."""

    def __init__(self, field: str, description: str):
        super().__init__(f"{field}: {description}")
        self.field, self.description = field, description


@dataclass(frozen=True)
class Clip:
    """Mono audio. samples: float32 [T], T ≥ 1, finite: the mean of all channels.

    channels: float32 [C, T], what was averaged; None when there was one channel.
    """

    samples: np.ndarray
    sample_rate_hz: int
    channels: np.ndarray | None = field(default=None, repr=False)

    @property
    def duration_s(self) -> float:
        return len(self.samples) / self.sample_rate_hz


def read_raw(
    data: bytes, *, encoding: ClipEncoding, sample_rate_hz: int, channels: int = 1, max_duration_s: float
) -> Clip:
    """Interleaved samples without a container.

    Raises: AudioError.
    """
    fields = ("raw.format.sample_rate_hz", "raw.format.channels", "raw.data")
    block_bytes = _BYTES[encoding] * max(channels, 1)
    if len(data) % block_bytes:
        raise AudioError("raw.data", f"{len(data)} bytes is no whole number of {block_bytes}-byte sample groups")
    check_sizes(len(data) // block_bytes, sample_rate_hz, channels, max_duration_s, fields)
    return clip_of(from_clip_bytes(data, encoding).reshape(-1, channels), sample_rate_hz, "raw.data")


def read_wav(data: bytes, *, max_duration_s: float) -> Clip:
    """A WAV file of any kind that `wav` reads. Limits are checked before a sample is decoded.

    Raises: AudioError.
    """
    try:
        info = wav.read_info(data)
    except wav.WavError as error:
        raise AudioError("wav", str(error)) from None
    check_sizes(info.frames, info.sample_rate_hz, info.channels, max_duration_s, ("wav", "wav", "wav"))
    return clip_of(wav.decode(data, info), info.sample_rate_hz, "wav")


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


def from_clip_bytes(data: bytes, encoding: ClipEncoding) -> np.ndarray:
    """The same of a caller's samples, which may be G.711."""
    if encoding == "mulaw" or encoding == "alaw":
        table = wav.g711_table(wav.MULAW if encoding == "mulaw" else wav.ALAW)
        samples: np.ndarray = table[np.frombuffer(data, np.uint8)]
        return samples
    return from_bytes(data, encoding)


def sample_bytes(encoding: ClipEncoding) -> int:
    """Bytes of one sample."""
    return _BYTES[encoding]


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


def check_sizes(
    frames: int, sample_rate_hz: int, channels: int, max_duration_s: float, fields: tuple[str, str, str]
) -> None:
    """Check every limit from the sizes alone. fields: names of rate, channels and data in errors. Raises: AudioError."""
    rate_field, channels_field, data_field = fields
    if not MIN_RATE_HZ <= sample_rate_hz <= MAX_CLIP_RATE_HZ:
        raise AudioError(rate_field, f"must be {MIN_RATE_HZ} to {MAX_CLIP_RATE_HZ} Hz, not {sample_rate_hz} Hz")
    if not 1 <= channels <= MAX_CHANNELS:
        raise AudioError(channels_field, f"must have 1 to {MAX_CHANNELS} channels, not {channels}")
    if not frames:
        raise AudioError(data_field, "holds no samples")
    duration_s = frames / sample_rate_hz
    if duration_s > max_duration_s:
        raise AudioError(data_field, f"lasts {duration_s:.2f} s, at most {max_duration_s:g} s are taken")


def clip_of(samples: np.ndarray, sample_rate_hz: int, field: str) -> Clip:
    """samples: float32 [T, C]. field: where they come from. Raises: AudioError for values that are no audio."""
    peak = float(np.max(np.abs(samples)))  # NaN when any sample is
    if not np.isfinite(peak):
        raise AudioError(field, "has samples that are NaN or infinite")
    if peak > MAX_PEAK:
        raise AudioError(field, f"float samples must lie in [-1, 1], found {peak:g}")
    if samples.shape[1] == 1:
        return Clip(samples[:, 0], sample_rate_hz)
    return Clip(samples.mean(axis=1, dtype=np.float32), sample_rate_hz, samples.T)
