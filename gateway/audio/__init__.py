"""Audio out: samples to the formats that callers ask for, as they are made. Knows numpy and PyAV, no proto and no grpc.

    encoder = open_encoder("mp3", input_rate_hz=24_000)
    for samples in speech:                 # float32 [T]
        send(b"".join(encoder.feed(samples)))
    send(b"".join(encoder.finish()))

A codec takes milliseconds for a piece of speech, so `AsyncEncoder` runs it in a thread.
"""

from gateway.audio.async_encoder import AsyncEncoder
from gateway.audio.formats import FORMATS, Format, open_encoder
from gateway.audio.stream_encoder import FormatError, StreamEncoder

__all__ = ["FORMATS", "AsyncEncoder", "Format", "FormatError", "StreamEncoder", "open_encoder"]
