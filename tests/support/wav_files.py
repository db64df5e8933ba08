"""WAV files that other programs write and that have tripped readers, each of the same speech."""

from __future__ import annotations

import struct

import numpy as np


def wav_files(samples: np.ndarray, rate_hz: int) -> dict[str, bytes]:
    """Files by what is odd about them. samples: float [T], full scale 1."""
    pcm = _s16(samples)
    quiet = np.zeros(121 * rate_hz - len(samples))
    return {
        "size0": _riff(_fmt(1, 1, rate_hz, 16), _chunk(b"data", pcm, 0), size=0),  # written into a pipe
        "pcm24": _riff(_fmt(1, 1, rate_hz, 24), _chunk(b"data", _s24(samples))),
        "pcm8": _riff(_fmt(1, 1, rate_hz, 8), _chunk(b"data", (np.rint(samples * 127) + 128).astype("u1").tobytes())),
        "pcm32": _riff(_fmt(1, 1, rate_hz, 32), _chunk(b"data", np.rint(samples * (2**31 - 1)).astype("<i4").tobytes())),
        "float64": _riff(_fmt(3, 1, rate_hz, 64), _chunk(b"data", samples.astype("<f8").tobytes())),
        "rate96k": _riff(_fmt(1, 1, 96_000, 16), _chunk(b"data", _s16(np.repeat(samples, 96_000 // rate_hz)))),
        "six_channels": _riff(_fmt(1, 6, rate_hz, 16), _chunk(b"data", _s16(np.repeat(samples, 6)))),
        "cut_by_one_sample": _riff(_fmt(1, 1, rate_hz, 16), _chunk(b"data", pcm))[:-2],
        "rf64": _riff(
            _chunk(b"ds64", struct.pack("<QQQI", len(pcm) + 72, len(pcm), len(samples), 0)),
            _fmt(1, 1, rate_hz, 16), _chunk(b"data", pcm, 0xFFFF_FFFF), size=0xFFFF_FFFF, tag=b"RF64",
        ),
        "marked_then_louder_noise": _riff(
            _fmt(1, 1, rate_hz, 16), _chunk(b"data", _s16(np.concatenate([samples, _louder_noise(samples, rate_hz)])))
        ),
        "two_minutes_and_a_second": _riff(
            _fmt(1, 1, rate_hz, 16), _chunk(b"data", _s16(np.concatenate([samples, quiet])))
        ),
    }  # fmt: skip


def _chunk(name: bytes, data: bytes, size: int | None = None) -> bytes:
    return name + struct.pack("<I", len(data) if size is None else size) + data + b"\0" * (len(data) % 2)


def _riff(*chunks: bytes, size: int | None = None, tag: bytes = b"RIFF") -> bytes:
    body = b"WAVE" + b"".join(chunks)
    return tag + struct.pack("<I", len(body) if size is None else size) + body


def _fmt(tag: int, channels: int, rate_hz: int, bits: int) -> bytes:
    block = channels * bits // 8
    return _chunk(b"fmt ", struct.pack("<HHIIHH", tag, channels, rate_hz, rate_hz * block, block, bits))


def _s16(samples: np.ndarray) -> bytes:
    return np.clip(np.rint(samples * 32767), -32768, 32767).astype("<i2").tobytes()


def _s24(samples: np.ndarray) -> bytes:
    return np.rint(samples * 8388607).astype("<i4").view("u1").reshape(-1, 4)[:, :3].tobytes()


def _louder_noise(samples: np.ndarray, rate_hz: int, seconds: int = 20) -> np.ndarray:
    """Pink noise, 6 dB louder than the speech."""
    draw, hz = np.random.default_rng(1), np.fft.rfftfreq(seconds * rate_hz, 1 / rate_hz)
    spectrum = (draw.normal(size=len(hz)) + 1j * draw.normal(size=len(hz))) / np.sqrt(np.maximum(hz, 20))
    noise = np.fft.irfft(spectrum, seconds * rate_hz)
    return np.clip(2 * np.sqrt((samples**2).mean() / (noise**2).mean()) * noise, -1, 1)
