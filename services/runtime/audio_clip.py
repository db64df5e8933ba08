"""An AudioClip of the contracts as samples."""

from __future__ import annotations

from csm.common.v1 import common_pb2

from services.runtime.audio import AudioError, Clip, read_raw, read_wav
from services.runtime.sample_encodings import ENCODINGS


def read_clip(audio: common_pb2.AudioClip, *, max_duration_s: float) -> Clip:
    """Takes milliseconds: not for the event loop. Raises: AudioError."""
    match audio.WhichOneof("source"):
        case "wav":
            return read_wav(audio.wav, max_duration_s=max_duration_s)
        case "raw":
            form = audio.raw.format
            if form.encoding not in ENCODINGS:
                raise AudioError("raw.format.encoding", "must be PCM_S16LE or PCM_F32LE")
            return read_raw(
                audio.raw.data,
                encoding=ENCODINGS[form.encoding],
                sample_rate_hz=form.sample_rate_hz,
                channels=form.channels if form.HasField("channels") else 1,
                max_duration_s=max_duration_s,
            )
        case _:
            raise AudioError("source", "must be set: wav or raw")
