"""Audio files that callers send, of any kind that is read: WAV, FLAC, MP3, Ogg. Knows numpy.

WAV is read here, by `wav`. The others go through libsndfile, which parses what strangers send in C: that runs in a
process of its own (`decoder_process`), whose memory and time are bounded and whose crash is the file's fault alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from services.runtime.audio import AudioError, Clip, check_sizes, clip_of, read_wav
from services.runtime.decoder_process import UNKNOWN_FRAMES, DecodeError, DecoderProcess, FileInfo, open_decoder

FIELD = "file"
KINDS = "WAV, FLAC, MP3 or Ogg (Vorbis, Opus)"
# Of a clip's samples once decoded, all channels: a FLAC of silence unpacks to thousands of times its size.
MAX_DECODED_BYTES = 128 << 20
MAX_COMPRESSED_BYTES = 64 << 20  # of one file that comes in pieces, and is decoded when it is whole
_WAV = (b"RIFF", b"RIFX", b"RF64", b"BW64")
_MP3_KBIT = {  # by version bit (1: MPEG-1), layer III
    1: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    0: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_MP3_HZ = (44_100, 48_000, 32_000)


def sniff(data: bytes) -> str:
    """`wav`, `flac`, `ogg` or `mp3` by the first bytes (8 KiB are enough), else empty."""
    if data[:4] in _WAV:
        return "wav"
    if data[:4] == b"fLaC":
        return "flac"
    if data[:4] == b"OggS":
        return "ogg"
    if data[:3] == b"ID3" or _is_mp3_frame(data):
        return "mp3"
    return ""


def read_file(data: bytes, *, max_duration_s: float) -> Clip:
    """A whole file. Limits are checked before a sample is decoded, and again as they are. Raises: AudioError."""
    kind = sniff(data)
    if kind == "wav":
        try:
            return read_wav(data, max_duration_s=max_duration_s)
        except AudioError as error:
            raise AudioError(FIELD, error.description) from None
    with CompressedFile(data, max_duration_s=max_duration_s) as file:
        return clip_of(np.concatenate(list(file.blocks())), file.sample_rate_hz, FIELD)


class CompressedFile:
    """A FLAC, MP3 or Ogg file, whose samples come in blocks of at most a second. For one thread at a time."""

    def __init__(self, data: bytes, *, max_duration_s: float, max_bytes: float = MAX_DECODED_BYTES):
        """Raises: AudioError."""
        if not sniff(data):
            raise AudioError(FIELD, f"is no {KINDS} file" if data else "is empty")
        self._max_s, self._max_bytes = max_duration_s, max_bytes
        self._frames = 0  # decoded
        self._decoder: DecoderProcess = open_decoder()
        try:
            info = self._open(data)
            self.sample_rate_hz, self.channels = info.sample_rate_hz, info.channels
            stated = 1 if info.frames == UNKNOWN_FRAMES else info.frames
            check_sizes(stated, info.sample_rate_hz, info.channels, max_duration_s, (FIELD, FIELD, FIELD))
            self._check_bytes(stated)
        except AudioError:
            self.close()
            raise

    def __enter__(self) -> CompressedFile:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Without effect on one that is closed."""
        self._decoder.close()

    def blocks(self) -> Iterator[np.ndarray]:
        """float32 [T, channels], T ≥ 1; at least one. Raises: AudioError."""
        while len(block := self.next_block()):
            yield block
        if not self._frames:
            raise AudioError(FIELD, "holds no samples")

    def next_block(self) -> np.ndarray:
        """float32 [T, channels]; T is 0 at the end. Raises: AudioError."""
        try:
            data = self._decoder.read()
        except DecodeError as error:
            raise AudioError(FIELD, str(error)) from None
        block = np.frombuffer(data, np.float32).reshape(-1, self.channels)
        self._frames += len(block)
        if self._frames > self._max_s * self.sample_rate_hz:
            raise AudioError(FIELD, f"lasts more than {self._max_s:g} s, which is what is taken")
        self._check_bytes(self._frames)
        return block

    def _open(self, data: bytes) -> FileInfo:
        try:
            return self._decoder.open(data)
        except DecodeError as error:
            raise AudioError(FIELD, str(error)) from None

    def _check_bytes(self, frames: int) -> None:
        if (size := 4 * frames * self.channels) > self._max_bytes:
            raise AudioError(
                FIELD,
                f"unpacks to {size / 1e6:.0f} MB of samples or more, at most {self._max_bytes / 1e6:.0f} are taken",
            )


def _is_mp3_frame(data: bytes) -> bool:
    """Two headers of layer III in a row, the second where the first says. One alone may be samples."""
    size = _mp3_frame_bytes(data[:4])
    return bool(size) and (len(data) <= size or bool(_mp3_frame_bytes(data[size : size + 4])))


def _mp3_frame_bytes(header: bytes) -> int:
    """Length of the frame that begins with these four bytes; 0: none does."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE0 != 0xE0:
        return 0
    version, layer = header[1] >> 3 & 3, header[1] >> 1 & 3  # version: 0 is MPEG-2.5, 2 MPEG-2, 3 MPEG-1
    bitrate, rate, padding = header[2] >> 4, header[2] >> 2 & 3, header[2] >> 1 & 1
    if version == 1 or layer != 1 or bitrate in (0, 15) or rate == 3:
        return 0
    rate_hz = _MP3_HZ[rate] // {3: 1, 2: 2, 0: 4}[version]
    samples = 1152 if version == 3 else 576
    return samples // 8 * 1000 * _MP3_KBIT[int(version == 3)][bitrate] // rate_hz + padding
