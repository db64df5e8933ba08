"""Marked audio at the bundle's rate to the messages a caller asked for: rate, sample encoding, container."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from csm.common.v1 import common_pb2
from csm.speech.v1 import speech_pb2

from gateway.audio import AsyncEncoder, FormatError, open_encoder
from services.runtime.errors import InvalidArgument

_UNSPECIFIED = common_pb2.AUDIO_ENCODING_UNSPECIFIED
_S16LE = common_pb2.AUDIO_ENCODING_PCM_S16LE
_SAMPLES: dict[common_pb2.AudioEncoding.ValueType, str] = {
    _S16LE: "pcm",
    common_pb2.AUDIO_ENCODING_PCM_F32LE: "f32",
    common_pb2.AUDIO_ENCODING_MULAW: "mulaw",
    common_pb2.AUDIO_ENCODING_ALAW: "alaw",
}


class _Layout(NamedTuple):
    """formats: by sample encoding, a name of gateway.audio. default: the encoding where none is stated."""

    formats: dict[common_pb2.AudioEncoding.ValueType, str]
    default: common_pb2.AudioEncoding.ValueType


_LAYOUTS: dict[speech_pb2.Container.ValueType, _Layout] = {
    speech_pb2.CONTAINER_RAW: _Layout(_SAMPLES, _S16LE),
    speech_pb2.CONTAINER_WAV: _Layout(
        {encoding: "wav" if name == "pcm" else f"wav_{name}" for encoding, name in _SAMPLES.items()}, _S16LE
    ),
    speech_pb2.CONTAINER_FLAC: _Layout({_S16LE: "flac"}, _S16LE),
    speech_pb2.CONTAINER_MP3: _Layout({_UNSPECIFIED: "mp3"}, _UNSPECIFIED),
    speech_pb2.CONTAINER_OGG_OPUS: _Layout({_UNSPECIFIED: "ogg_opus"}, _UNSPECIFIED),
    speech_pb2.CONTAINER_OPUS_PACKETS: _Layout({_UNSPECIFIED: "opus_packets"}, _UNSPECIFIED),
}


class Output:
    """Writes one utterance. `feed` and `finish` give the data of messages; `samples` counts those written so far."""

    def __init__(
        self, options: speech_pb2.OutputOptions, sample_rate_hz: int, *, streamed: bool = True, model: str = ""
    ):
        """sample_rate_hz: of what is fed. streamed: else all comes with `finish`, in one. model: the bundle's id.

        Raises: InvalidArgument naming the option and its limit.
        """
        self.container = options.container or speech_pb2.CONTAINER_RAW
        if self.container not in _LAYOUTS:
            known = ", ".join(_short(speech_pb2.Container.Name(one)) for one in _LAYOUTS)
            raise InvalidArgument("output.container", f"must be {known}, not {options.container}")
        name = _short(speech_pb2.Container.Name(self.container))
        if self.container == speech_pb2.CONTAINER_OPUS_PACKETS and not streamed:
            raise InvalidArgument("output.container", "OPUS_PACKETS are for streams; a whole answer takes OGG_OPUS")
        layout = _LAYOUTS[self.container]
        self._encoding = options.encoding or layout.default
        if self._encoding not in layout.formats:
            known = ", ".join(_short(common_pb2.AudioEncoding.Name(one)) for one in layout.formats if one)
            raise InvalidArgument(
                "output.encoding", f"of {name} must be {known or 'unset'}, not {_encoding_name(options.encoding)}"
            )
        rate = options.sample_rate_hz if options.HasField("sample_rate_hz") else None
        try:
            encoder = open_encoder(
                layout.formats[self._encoding],
                input_rate_hz=sample_rate_hz,
                sample_rate_hz=rate,
                streamed=streamed,
                model=model,
            )
        except FormatError as error:
            raise InvalidArgument(f"output.{error.field}", error.description) from None
        self._encoder = AsyncEncoder(encoder)
        self.sample_rate_hz = encoder.sample_rate_hz

    @property
    def format(self) -> common_pb2.AudioFormat:
        """Layout of the samples."""
        return common_pb2.AudioFormat(encoding=self._encoding, sample_rate_hz=self.sample_rate_hz, channels=1)

    @property
    def samples(self) -> int:
        return self._encoder.encoder.samples

    async def feed(self, samples: np.ndarray) -> list[bytes]:
        """Of `samples` (float32 [T]); resampler and codec may hold some back until `finish`."""
        return await self._encoder.feed(samples)

    async def finish(self) -> list[bytes]:
        """What is still held back."""
        return await self._encoder.finish()


def _short(name: str) -> str:
    return name.removeprefix("CONTAINER_").removeprefix("AUDIO_ENCODING_")


def _encoding_name(value: int) -> str:
    known = value in common_pb2.AudioEncoding.values()
    return _short(common_pb2.AudioEncoding.Name(value)) if known else str(value)  # type: ignore[arg-type]
