"""What `response_format` may be. The gateway makes the bytes; here they are only passed on."""

from __future__ import annotations

from dataclasses import dataclass

from csm.speech.v1 import speech_pb2

RATE_HZ = 24_000  # of `pcm` in OpenAI's API, whose clients do not ask


@dataclass(frozen=True)
class Format:
    """media_type: the Content-Type, by which some clients choose their decoder. header_bytes: of the file, before its audio."""

    media_type: str
    container: speech_pb2.Container.ValueType
    header_bytes: int = 0


FORMATS = {
    "pcm": Format("audio/pcm", speech_pb2.CONTAINER_RAW),
    "wav": Format("audio/wav", speech_pb2.CONTAINER_WAV, header_bytes=44),
}
