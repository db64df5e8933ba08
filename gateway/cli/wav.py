"""The WAV header of 16-bit mono samples."""

from __future__ import annotations

import struct

_LONGEST = 0xFFFFFFFF


def wav_header(sample_rate_hz: int, pcm_bytes: int | None) -> bytes:
    """44 bytes. pcm_bytes: length of the samples; None when it is not known yet, and then the largest is stated."""
    length = min(_LONGEST - 36 if pcm_bytes is None else pcm_bytes, _LONGEST - 36)
    form = struct.pack("<HHIIHH", 1, 1, sample_rate_hz, 2 * sample_rate_hz, 2, 16)
    return (
        b"RIFF"
        + struct.pack("<I", 36 + length)
        + b"WAVEfmt "
        + struct.pack("<I", 16)
        + form
        + b"data"
        + struct.pack("<I", length)
    )
