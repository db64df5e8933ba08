"""Marked audio at the bundle's rate to the bytes a caller asked for: rate, sample encoding, container."""

from __future__ import annotations

import numpy as np
import soxr
from csm.common.v1 import common_pb2
from csm.speech.v1 import speech_pb2

from services.runtime.audio import MAX_RATE_HZ, MIN_RATE_HZ, Encoding, to_bytes, wav_header
from services.runtime.errors import InvalidArgument
from services.runtime.sample_encodings import ENCODINGS, PROTO_ENCODINGS

_ENCODINGS: dict[int, Encoding] = {common_pb2.AUDIO_ENCODING_UNSPECIFIED: "s16le", **ENCODINGS}
_CONTAINERS = {
    speech_pb2.CONTAINER_UNSPECIFIED: speech_pb2.CONTAINER_RAW,
    speech_pb2.CONTAINER_RAW: speech_pb2.CONTAINER_RAW,
    speech_pb2.CONTAINER_WAV: speech_pb2.CONTAINER_WAV,
}


class Output:
    """Writes one utterance. `feed` and `finish` give bytes; `samples` counts those written so far."""

    def __init__(self, options: speech_pb2.OutputOptions, sample_rate_hz: int):
        """Raises: InvalidArgument naming the option and its limit."""
        if options.encoding not in _ENCODINGS:
            raise InvalidArgument("output.encoding", f"must be PCM_S16LE or PCM_F32LE, not {options.encoding}")
        if options.container not in _CONTAINERS:
            raise InvalidArgument("output.container", f"must be RAW or WAV, not {options.container}")
        rate = options.sample_rate_hz if options.HasField("sample_rate_hz") else sample_rate_hz
        if not MIN_RATE_HZ <= rate <= MAX_RATE_HZ:
            raise InvalidArgument("output.sample_rate_hz", f"must be {MIN_RATE_HZ} to {MAX_RATE_HZ}, not {rate}")
        self.sample_rate_hz = rate
        self.samples = 0
        self.container = _CONTAINERS[options.container]
        self._encoding = _ENCODINGS[options.encoding]
        self._resampler = (
            None if rate == sample_rate_hz else soxr.ResampleStream(sample_rate_hz, rate, 1, dtype="float32")
        )

    @property
    def format(self) -> common_pb2.AudioFormat:
        """Layout of the samples."""
        return common_pb2.AudioFormat(
            encoding=PROTO_ENCODINGS[self._encoding], sample_rate_hz=self.sample_rate_hz, channels=1
        )

    def header(self, data_bytes: int | None = None) -> bytes:
        """What goes before the samples; data_bytes is None while it is unknown."""
        if self.container != speech_pb2.CONTAINER_WAV:
            return b""
        return wav_header(self._encoding, self.sample_rate_hz, 1, data_bytes)

    def feed(self, samples: np.ndarray, *, last: bool = False) -> bytes:
        """Bytes of `samples` (float32 [T]); the resampler may hold some back until `last`."""
        if self._resampler is not None:
            samples = self._resampler.resample_chunk(samples, last=last)
        self.samples += len(samples)
        return to_bytes(samples, self._encoding)

    def finish(self) -> bytes:
        """What the resampler still holds."""
        return self.feed(np.zeros(0, np.float32), last=True)
