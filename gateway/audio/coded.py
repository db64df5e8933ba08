"""FLAC, MP3 and Opus, by PyAV (FFmpeg), which is imported with the first of them."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from gateway.audio.resampler import StreamResampler
from services.runtime.provenance import tags

if TYPE_CHECKING:
    import av
    from av.audio.codeccontext import AudioCodecContext
    from av.audio.stream import AudioStream
    from av.container import OutputContainer

PACKET_MS = 20  # of Opus


@dataclass(frozen=True)
class Codec:
    """FFmpeg's names. sample: `s16` for what keeps 16 bits, else a float. muxer: empty for packets alone."""

    name: str
    sample: str
    options: Mapping[str, str]
    muxer: str = ""
    muxer_options: Mapping[str, str] = field(default_factory=dict)


_OPUS = {"application": "audio", "frame_duration": str(PACKET_MS), "b": "48000"}

# Level 2 has blocks of at most 27 ms; above it they are 105 ms, for 1 % fewer bytes.
FLAC = Codec("flac", "s16", {"compression_level": "2"}, "flac", {"metadata_header_padding": "0"})
# Without the bit reservoir a frame never waits for one before it; without Xing's frame, which states a length that a
# stream does not know, a whole file decodes to the same samples.
MP3 = Codec("libmp3lame", "fltp", {"b": "64000", "reservoir": "0"}, "mp3", {"write_xing": "0", "id3v2_version": "4"})
OGG_OPUS = Codec("libopus", "flt", _OPUS, "ogg", {"page_duration": str(PACKET_MS * 1000)})
OPUS_PACKETS = Codec("libopus", "flt", _OPUS)


class _Bytes:
    """What a muxer writes to where it cannot go back."""

    def __init__(self) -> None:
        self._data = bytearray()

    def write(self, data: bytes) -> int:
        self._data += data
        return len(data)

    def take(self) -> list[bytes]:
        data = bytes(self._data)
        self._data.clear()
        return [data] if data else []


class CodedEncoder:
    """A file of a codec. streamed: as it is made, else all comes with `finish` and the header knows the length."""

    max_inline_samples = 0

    def __init__(self, codec: Codec, resampler: StreamResampler, content_type: str, *, streamed: bool, model: str):
        self.content_type, self.sample_rate_hz = content_type, resampler.output_rate_hz
        self.samples = 0
        self._codec, self._resampler, self._model = codec, resampler, model
        self._sink = _Bytes()
        self._whole = None if streamed else io.BytesIO()
        self._opened: tuple[OutputContainer, AudioStream] | None = None

    def feed(self, samples: np.ndarray) -> list[bytes]:
        self._encode(self._resampler.feed(samples))
        return self._sink.take()

    def finish(self) -> list[bytes]:
        self._encode(self._resampler.finish())
        file, stream = self._open()
        file.start_encoding()  # writes the header, if there was no sample
        if self.samples:
            file.mux(stream.encode(None))
        file.close()
        return self._sink.take() if self._whole is None else [self._whole.getvalue()]

    def _encode(self, samples: np.ndarray) -> None:
        if len(samples):
            file, stream = self._open()
            file.mux(stream.encode(_frame(samples, self._codec, self.sample_rate_hz, self.samples)))
            self.samples += len(samples)

    def _open(self) -> tuple[OutputContainer, AudioStream]:
        """With the first samples, for it takes milliseconds, as `feed` may."""
        if self._opened is None:
            import av
            from av.audio.stream import AudioStream

            sink = self._sink if self._whole is None else self._whole
            file = av.open(sink, "w", format=self._codec.muxer, container_options=dict(self._codec.muxer_options))
            file.metadata.update(tags(self._model))
            stream = file.add_stream(self._codec.name, rate=self.sample_rate_hz, options=dict(self._codec.options))
            assert isinstance(stream, AudioStream)
            stream.layout = "mono"
            stream.format = self._codec.sample
            self._opened = file, stream
        return self._opened


class PacketEncoder:
    """Opus packets for RTP: each piece is one packet of 20 ms; RTP's clock is 48 kHz."""

    max_inline_samples = 0

    def __init__(self, codec: Codec, resampler: StreamResampler, content_type: str):
        self.content_type, self.sample_rate_hz = content_type, resampler.output_rate_hz
        self.samples = 0
        self._codec, self._resampler = codec, resampler
        self._opened: AudioCodecContext | None = None

    def feed(self, samples: np.ndarray) -> list[bytes]:
        return self._encode(self._resampler.feed(samples))

    def finish(self) -> list[bytes]:
        pieces = self._encode(self._resampler.finish())
        if self.samples:
            pieces += [bytes(packet) for packet in self._open().encode(None)]
        return pieces

    def _encode(self, samples: np.ndarray) -> list[bytes]:
        if not len(samples):
            return []
        frame = _frame(samples, self._codec, self.sample_rate_hz, self.samples)
        self.samples += len(samples)
        return [bytes(packet) for packet in self._open().encode(frame)]

    def _open(self) -> AudioCodecContext:
        if self._opened is None:
            import av
            from av.audio.codeccontext import AudioCodecContext

            context = av.CodecContext.create(self._codec.name, "w")
            assert isinstance(context, AudioCodecContext)
            context.sample_rate = self.sample_rate_hz
            context.layout = "mono"
            context.format = self._codec.sample
            context.options = dict(self._codec.options)
            context.time_base = Fraction(1, self.sample_rate_hz)
            self._opened = context
        return self._opened


def _frame(samples: np.ndarray, codec: Codec, sample_rate_hz: int, first_sample: int) -> av.AudioFrame:
    import av

    if codec.sample == "s16":
        samples = np.clip(np.rint(samples * 32768.0), -32768, 32767).astype(np.int16)
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples[None]), format=codec.sample, layout="mono")
    frame.sample_rate = sample_rate_hz
    frame.time_base = Fraction(1, sample_rate_hz)
    frame.pts = first_sample
    return frame
