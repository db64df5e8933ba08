"""How the contracts name a sample encoding, and how `services.runtime.audio` does."""

from __future__ import annotations

from csm.common.v1 import common_pb2

from services.runtime.audio import ClipEncoding, Encoding

ENCODINGS: dict[int, Encoding] = {
    common_pb2.AUDIO_ENCODING_PCM_S16LE: "s16le",
    common_pb2.AUDIO_ENCODING_PCM_F32LE: "f32le",
}
# Of clips, which callers may have from a telephone.
CLIP_ENCODINGS: dict[int, ClipEncoding] = {
    **ENCODINGS,
    common_pb2.AUDIO_ENCODING_MULAW: "mulaw",
    common_pb2.AUDIO_ENCODING_ALAW: "alaw",
}
CLIP_ENCODING_NAMES = "PCM_S16LE, PCM_F32LE, MULAW or ALAW"
