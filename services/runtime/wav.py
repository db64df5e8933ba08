"""WAV files as programs write them: where the samples are, and how to decode them. Knows numpy.

Takes RIFF, RIFX (big-endian), RF64 and BW64; PCM of 8, 16, 24 and 32 bits, float of 32 and 64, A-law and µ-law, each
also as WAVE_FORMAT_EXTENSIBLE; headers of writers that stream and cannot go back to fill in a length.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

MAX_CHUNKS = 256  # those of editors have a few dozen
MAX_MISSING_S = 0.1  # of samples that the header states and a writer that was stopped has not written

_PCM, _FLOAT, ALAW, MULAW, _EXTENSIBLE = 1, 3, 6, 7, 0xFFFE
# Bytes 2–15 of the subformat GUID of WAVE_FORMAT_EXTENSIBLE; the first two are the plain format tag.
_GUID_TAIL = bytes.fromhex("000000001000800000aa00389b71")
# Writers that stream do not know the length and put the largest number there, one near half of it, or 0.
_UNKNOWN_SIZE = 0x7FFF_0000
_NAMES = {0x02: "MS ADPCM", 0x11: "IMA ADPCM", 0x31: "GSM", 0x50: "MPEG", 0x55: "MP3", 0x161: "WMA", 0xF1AC: "FLAC"}
MAX_HEADER_BYTES = 1 << 20  # before the samples, of a file that comes in pieces


class WavError(ValueError):
    """Not a WAV file that can be read. The message says what is wrong with it."""


@dataclass(frozen=True)
class WavInfo:
    """What a header states. tag: PCM, float, A-law or µ-law. width: bytes of one sample. byte_order: `<` or `>`.

    start, size: where the samples are, in bytes; size is a whole number of frames (one sample of each channel).
    """

    tag: int
    width: int
    byte_order: str
    channels: int
    sample_rate_hz: int
    start: int
    size: int

    @property
    def frames(self) -> int:
        return self.size // (self.width * self.channels)


def read_info(data: bytes, *, is_prefix: bool = False) -> WavInfo:
    """Read the header alone; no sample is decoded. is_prefix: more of the file follows `data`. Raises: WavError."""
    if len(data) < 12 or data[:4] not in (b"RIFF", b"RIFX", b"RF64", b"BW64") or data[8:12] != b"WAVE":
        raise WavError("not a WAV file (no RIFF/WAVE header)")
    order = ">" if data[:4] == b"RIFX" else "<"
    (riff_size,) = struct.unpack_from(f"{order}I", data, 4)
    layout: tuple[int, int, int, int] | None = None
    long_size: int | None = None  # of the data chunk, where 32 bits are not enough
    position = 12
    for _ in range(MAX_CHUNKS):
        if position + 8 > len(data):
            raise WavError("truncated: no data chunk")
        name, size = data[position : position + 4], struct.unpack_from(f"{order}I", data, position + 4)[0]
        start = position + 8
        if name == b"data":
            if layout is None:
                raise WavError("the data chunk comes before any fmt chunk")
            tag, width, channels, rate_hz = layout
            there = (1 << 62 if is_prefix else len(data)) - start
            if size == 0xFFFF_FFFF and long_size:
                size = long_size
            elif size >= _UNKNOWN_SIZE or (size == 0 and (riff_size <= start - 8 or riff_size >= _UNKNOWN_SIZE)):
                size = there
            if size - there > MAX_MISSING_S * rate_hz * width * channels:
                raise WavError(f"truncated: {size} bytes of samples announced, {there} there")
            size = min(size, there)
            return WavInfo(tag, width, order, channels, rate_hz, start, size - size % (width * channels))
        if start + size > len(data):
            raise WavError(f"truncated inside its {name!r} chunk")
        if name == b"fmt ":
            layout = _fmt_chunk(data[start : start + size], order)
        elif name == b"ds64" and size >= 16:
            (long_size,) = struct.unpack_from("<Q", data, start + 8)
        position = start + size + size % 2  # chunks start at even offsets
    raise WavError(f"has no data chunk among its first {MAX_CHUNKS}")


class WavDecoder:
    """Decodes a WAV file that comes in pieces, of any length. info: None until the header is read."""

    def __init__(self) -> None:
        self.info: WavInfo | None = None
        self._data = b""
        self._left = 0  # bytes of samples to come

    def feed(self, data: bytes) -> np.ndarray:
        """The next bytes of the file → float32 samples [n, channels] that are complete. Raises: WavError."""
        self._data += data
        if self.info is None:
            try:
                self.info = read_info(self._data, is_prefix=True)
            except WavError:
                if len(self._data) > MAX_HEADER_BYTES or (len(self._data) >= 12 and self._data[8:12] != b"WAVE"):
                    raise
                return np.zeros((0, 1), np.float32)
            self._left = self.info.size
            self._data = self._data[self.info.start :]
        info = self.info
        frame = info.width * info.channels
        count = min(len(self._data), self._left)
        count -= count % frame
        samples, self._data = self._data[:count], self._data[count:]
        self._left -= count
        if not self._left:
            self._data = b""  # chunks after the samples
        return decode(samples, replace(info, start=0, size=count))

    def finish(self) -> None:
        """The file has ended. Raises: WavError when it has no samples, or fewer than its header announces."""
        if self.info is None:
            read_info(self._data)
            return
        info = self.info
        if self._left < 1 << 61 and self._left > MAX_MISSING_S * info.sample_rate_hz * info.width * info.channels:
            raise WavError(f"truncated: {self._left} bytes of samples announced and not there")


def decode(data: bytes, info: WavInfo) -> np.ndarray:
    """The samples as float32 [T, C]; integers and companded ones lie in [-1, 1]."""
    order, count = info.byte_order, info.size // info.width
    samples: np.ndarray
    if info.tag in (ALAW, MULAW):
        samples = g711_table(info.tag)[np.frombuffer(data, np.uint8, count, info.start)]
    elif info.tag == _FLOAT:
        with np.errstate(over="ignore", invalid="ignore"):  # what is too large becomes infinite, and is refused as that
            samples = np.frombuffer(data, f"{order}f{info.width}", count, info.start).astype(np.float32)
    elif info.width == 1:
        samples = (np.frombuffer(data, np.uint8, count, info.start).astype(np.float32) - 128) / 128
    elif info.width == 3:
        triples = np.frombuffer(data, np.uint8, info.size, info.start).reshape(-1, 3)
        padded = np.zeros((count, 4), np.uint8)
        padded[:, 1:] = triples if order == "<" else triples[:, ::-1]
        samples = padded.view("<i4")[:, 0].astype(np.float32) / 2.0**31
    else:
        whole = np.frombuffer(data, f"{order}i{info.width}", count, info.start)
        samples = whole.astype(np.float32) / 2.0 ** (8 * info.width - 1)
    return samples.reshape(-1, info.channels)


def _fmt_chunk(fmt: bytes, order: str) -> tuple[int, int, int, int]:
    """(tag, bytes of a sample, channels, sample_rate_hz) that a fmt chunk states."""
    if len(fmt) < 16:
        raise WavError(f"its fmt chunk has {len(fmt)} bytes, not 16 or more")
    tag, channels, rate_hz, _, block_bytes, bits = struct.unpack_from(f"{order}HHIIHH", fmt)
    if tag == _EXTENSIBLE and len(fmt) >= 40 and fmt[26:40] == _GUID_TAIL:
        (tag,) = struct.unpack_from(f"{order}H", fmt, 24)
    # A sample fills whole bytes: 12 bits are the upper ones of 16, 20 of 24.
    width = (bits + 7) // 8
    allowed = {_PCM: (1, 2, 3, 4), _FLOAT: (4, 8), ALAW: (1,), MULAW: (1,)}
    if width not in allowed.get(tag, ()):
        what = _NAMES.get(tag) or f"format {tag} with {bits} bit"
        raise WavError(f"must be PCM of 8, 16, 24 or 32 bit, float of 32 or 64, A-law or µ-law, not {what}")
    if not channels or block_bytes != channels * width:
        raise WavError(f"its fmt chunk contradicts itself: {channels} channels of {bits} bit in {block_bytes} bytes")
    return tag, width, channels, rate_hz


@cache
def g711_table(tag: int) -> np.ndarray:
    """float32 [256]: the value of each byte of A-law or µ-law by ITU-T G.711 (16-bit scale, as every decoder has it)."""
    code = np.arange(256)
    if tag == MULAW:
        code = ~code & 0xFF
        exponent, mantissa = (code >> 4) & 7, code & 15
        magnitude = (((mantissa << 3) + 132) << exponent) - 132
        positive = code < 128
    else:
        code = code ^ 0x55
        exponent, mantissa = (code >> 4) & 7, code & 15
        magnitude = np.where(exponent == 0, (mantissa << 4) + 8, ((mantissa << 4) + 264) << np.maximum(exponent - 1, 0))
        positive = code >= 128
    table: np.ndarray = (np.where(positive, magnitude, -magnitude) / 32768).astype(np.float32)
    return table
