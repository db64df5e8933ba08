"""How the contracts name a sample encoding, and how `services.runtime.audio` does."""

from __future__ import annotations

from csm.common.v1 import common_pb2

from services.runtime.audio import Encoding

ENCODINGS: dict[int, Encoding] = {
    common_pb2.AUDIO_ENCODING_PCM_S16LE: "s16le",
    common_pb2.AUDIO_ENCODING_PCM_F32LE: "f32le",
}
PROTO_ENCODINGS: dict[Encoding, common_pb2.AudioEncoding.ValueType] = {
    "s16le": common_pb2.AUDIO_ENCODING_PCM_S16LE,
    "f32le": common_pb2.AUDIO_ENCODING_PCM_F32LE,
}
