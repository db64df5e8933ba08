"""Requests from Python values. What is None is not sent, and so left to the deployment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict

from csm.common.v1 import common_pb2
from csm.speech.v1 import speech_pb2
from csm.voice.v1 import voice_pb2
from google.protobuf.message import Message

Encoding = Literal["pcm_s16le", "pcm_f32le", "mulaw", "alaw"]
Container = Literal["raw", "wav", "flac", "mp3", "ogg_opus", "opus_packets"]
Audio = bytes | str | Path
"""An audio file (WAV, FLAC, MP3, Ogg): its bytes, or its path."""

_ENCODINGS = {
    "pcm_s16le": common_pb2.AUDIO_ENCODING_PCM_S16LE,
    "pcm_f32le": common_pb2.AUDIO_ENCODING_PCM_F32LE,
    "mulaw": common_pb2.AUDIO_ENCODING_MULAW,
    "alaw": common_pb2.AUDIO_ENCODING_ALAW,
}
_CONTAINERS = {
    "raw": speech_pb2.CONTAINER_RAW,
    "wav": speech_pb2.CONTAINER_WAV,
    "flac": speech_pb2.CONTAINER_FLAC,
    "mp3": speech_pb2.CONTAINER_MP3,
    "ogg_opus": speech_pb2.CONTAINER_OGG_OPUS,
    "opus_packets": speech_pb2.CONTAINER_OPUS_PACKETS,
}


@dataclass(frozen=True)
class ContextTurn:
    """One earlier turn of the conversation. audio: a file's bytes, or its path."""

    speaker: int
    text: str
    audio: Audio

    def to_proto(self) -> speech_pb2.ContextSegment:
        """Reads the file, if audio is a path. Raises: OSError, ValueError."""
        segment = speech_pb2.ContextSegment(audio=clip(self.audio))
        _fill(segment, speaker=self.speaker, text=self.text)
        return segment


class SpeechOptions(TypedDict, total=False):
    """How to say a text, and how to encode it. What is left out is the deployment's choice.

    voice: a voice's name. speaker: or its number. context: earlier turns, oldest first. temperature, top_k, seed: of the sampling.
    max_audio_ms: longest audio; speech that would be longer is cut. text_normalization: numbers, dates and markup
    become words (default true). sample_rate_hz: 8000 to 48000. encoding: of the containers raw and wav. Of
    `opus_packets`, for streams only, each piece of audio is one packet.
    """

    voice: str | None
    speaker: int | None
    context: Iterable[ContextTurn]
    temperature: float | None
    top_k: int | None
    seed: int | None
    max_audio_ms: int | None
    text_normalization: bool | None
    sample_rate_hz: int | None
    encoding: Encoding | None
    container: Container | None


def utterance(text: str, options: SpeechOptions) -> speech_pb2.Utterance:
    """Raises: ValueError for what cannot be sent, OSError for a file that cannot be read."""
    message = speech_pb2.Utterance()
    _fill(message, text=text)
    _fill_options(message, options)
    return message


def configure(options: SpeechOptions) -> speech_pb2.ConverseConfigure:
    """The first message of a conversation. Raises: as `utterance`."""
    message = speech_pb2.ConverseConfigure(output=output(options))
    _fill_options(message, options)
    return message


def new_voice(
    name: str,
    transcript: str,
    audio: Audio,
    consent_statement: str,
    speaker: int | None,
    language: str | None,
    labels: Mapping[str, str],
) -> voice_pb2.CreateVoiceRequest:
    """Raises: as `utterance`."""
    message = voice_pb2.CreateVoiceRequest(audio=clip(audio))
    _fill(
        message,
        name=name,
        transcript=transcript,
        consent_statement=consent_statement,
        speaker=speaker,
        language=language,
    )
    message.labels.update(labels)
    return message


def output(options: SpeechOptions) -> speech_pb2.OutputOptions:
    """Raises: ValueError."""
    message = speech_pb2.OutputOptions(
        container=_named("container", options.get("container"), _CONTAINERS),
        encoding=_named("encoding", options.get("encoding"), _ENCODINGS),
    )
    _fill(message, sample_rate_hz=options.get("sample_rate_hz"))
    return message


def clip(audio: Audio) -> common_pb2.AudioClip:
    """Raises: OSError."""
    data = audio if isinstance(audio, bytes) else Path(audio).read_bytes()
    if data[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64"):  # any server takes a WAV, also one of before `file`
        return common_pb2.AudioClip(wav=data)
    return common_pb2.AudioClip(file=data)


def _fill_options(message: speech_pb2.Utterance | speech_pb2.ConverseConfigure, options: SpeechOptions) -> None:
    if unknown := options.keys() - SpeechOptions.__annotations__.keys():
        raise TypeError(f"no such option: {', '.join(sorted(unknown))}")
    message.context.extend(turn.to_proto() for turn in options.get("context", ()))
    _fill(message, **{name: options.get(name) for name in ("voice", "speaker", "max_audio_ms", "text_normalization")})
    _fill(message.sampling, **{name: options.get(name) for name in ("temperature", "top_k", "seed")})


def _fill(message: Message, **values: Any) -> None:
    """Set the fields that have a value. Raises: ValueError naming the field whose type cannot hold it.

    The server checks limits; this finds numbers and texts that cannot be sent at all.
    """
    for name, value in values.items():
        if value is not None:
            try:
                setattr(message, name, value)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{name}: cannot be {value!r:.60}: {error}") from error


def _named(field: str, name: str | None, values: dict[str, Any]) -> Any:
    if name is not None and name not in values:
        raise ValueError(f"{field}: {name!r} is none of {', '.join(values)}")
    return values[name] if name is not None else None


def search(speeds: bool, time_limit_s: float | None) -> common_pb2.WatermarkSearch:
    """How a watermark is searched."""
    wanted = common_pb2.WatermarkSearch(speeds=speeds)
    if time_limit_s is not None:
        wanted.time_limit.FromNanoseconds(round(time_limit_s * 1e9))
    return wanted
