"""An AudioClip of the contracts as samples. Field names in errors are those of csm.common.v1.AudioClip."""

from __future__ import annotations

from csm.common.v1 import common_pb2

from services.runtime.audio import AudioError, Clip, read_raw, read_wav
from services.runtime.audio_file import read_file, sniff
from services.runtime.sample_encodings import CLIP_ENCODING_NAMES, CLIP_ENCODINGS


def read_clip(audio: common_pb2.AudioClip, *, max_duration_s: float) -> Clip:
    """Takes milliseconds: not for the event loop. Raises: AudioError."""
    match audio.WhichOneof("source"):
        case "wav":
            if (kind := sniff(audio.wav)) not in ("", "wav"):
                raise AudioError("wav", f"is no WAV file but {kind.upper()}, which goes into `file`")
            return read_wav(audio.wav, max_duration_s=max_duration_s)
        case "file":
            return read_file(audio.file, max_duration_s=max_duration_s)
        case "raw":
            form = audio.raw.format
            if form.encoding not in CLIP_ENCODINGS:
                raise AudioError("raw.format.encoding", f"must be {CLIP_ENCODING_NAMES}")
            return read_raw(
                audio.raw.data,
                encoding=CLIP_ENCODINGS[form.encoding],
                sample_rate_hz=form.sample_rate_hz,
                channels=form.channels if form.HasField("channels") else 1,
                max_duration_s=max_duration_s,
            )
        case _:
            raise AudioError("source", "must be set: wav, file or raw")
