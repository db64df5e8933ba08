"""What `response_format` may be. The gateway makes the bytes; here they are only passed on."""

from __future__ import annotations

from dataclasses import dataclass

from csm.speech.v1 import speech_pb2

RATE_HZ = 24_000  # of `pcm` in OpenAI's API, whose clients do not ask


@dataclass(frozen=True)
class Format:
    """media_type: the Content-Type, by which some clients choose their decoder."""

    media_type: str
    container: speech_pb2.Container.ValueType


FORMATS = {
    "mp3": Format("audio/mpeg", speech_pb2.CONTAINER_MP3),
    "opus": Format("audio/ogg", speech_pb2.CONTAINER_OGG_OPUS),
    "flac": Format("audio/flac", speech_pb2.CONTAINER_FLAC),
    "wav": Format("audio/wav", speech_pb2.CONTAINER_WAV),
    "pcm": Format("audio/pcm", speech_pb2.CONTAINER_RAW),
}
DEFAULT_FORMAT = "mp3"
