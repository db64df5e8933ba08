"""The WAV header of 16-bit mono samples, and the length in the header of a FLAC file."""

from __future__ import annotations

import struct
from typing import BinaryIO

from services.runtime.provenance import riff_info

_LONGEST = 0xFFFFFFFF
_TAG = riff_info("")  # the file says that its speech is synthetic
HEADER_BYTES = 44 + len(_TAG)


def wav_header(sample_rate_hz: int, pcm_bytes: int | None) -> bytes:
    """HEADER_BYTES. pcm_bytes: length of the samples; None when it is not known yet, and then the largest is stated."""
    rest = HEADER_BYTES - 8
    length = min(_LONGEST - rest if pcm_bytes is None else pcm_bytes, _LONGEST - rest)
    form = struct.pack("<HHIIHH", 1, 1, sample_rate_hz, 2 * sample_rate_hz, 2, 16)
    return (
        b"RIFF"
        + struct.pack("<I", rest + length)
        + b"WAVEfmt "
        + struct.pack("<I", 16)
        + form
        + _TAG
        + b"data"
        + struct.pack("<I", length)
    )


def state_flac_length(file: BinaryIO, samples: int) -> None:
    """Write the number of samples into the STREAMINFO block of a FLAC file, which a stream leaves open (RFC 9639, 8.2)."""
    file.seek(0)
    if file.read(5)[:4] != b"fLaC" or not 0 < samples < 1 << 36:
        return
    file.seek(21)  # 4 of the signature, 4 of the block's header, 13 of sizes, rate, channels and bits
    (top,) = file.read(1)
    file.seek(21)
    file.write(struct.pack(">BI", top & 0xF0 | samples >> 32, samples & 0xFFFFFFFF))
