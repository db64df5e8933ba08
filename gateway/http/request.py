"""The body of `POST /v1/audio/speech` as a request to the gateway.

What OpenAI's API has and CSM has not is ignored (`model`, `instructions`) or refused (`speed`). `seed`, `temperature`,
`top_k` and `max_audio_ms` are ours, for clients that can send more fields (`extra_body`).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from csm.speech.v1 import speech_pb2

from gateway.http.errors import HttpError, bad_request
from gateway.http.formats import DEFAULT_FORMAT, FORMATS, RATE_HZ, Format

_STREAM_FORMATS = ("audio", "sse")


@dataclass(frozen=True)
class Wanted:
    """request: for the gateway. is_sse: whether audio comes as events."""

    request: speech_pb2.StreamSynthesizeRequest
    format: Format
    is_sse: bool


def parse(body: bytes, content_type: str) -> Wanted:
    """Raises: HttpError naming the field."""
    if content_type.partition(";")[0].strip().lower() != "application/json":
        # A page of another origin may send anything else without being asked whether it may.
        raise HttpError(415, "content-type: must be application/json", code="unsupported_media_type")
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        raise bad_request(None, "the body is not JSON") from None
    if not isinstance(fields, dict):
        raise bad_request(None, "the body must be a JSON object")
    format_ = _choice(fields, "response_format", tuple(FORMATS), DEFAULT_FORMAT)
    stream_format = _choice(fields, "stream_format", _STREAM_FORMATS, "audio")
    speed = fields.get("speed", 1.0)
    if speed is not None and (isinstance(speed, bool) or speed != 1):
        raise bad_request("speed", "must be 1: CSM has no other")
    for name in ("model", "instructions"):
        if not isinstance(fields.get(name, ""), str | None):
            raise bad_request(name, "must be a string")
    text = fields.get("input")
    if not isinstance(text, str) or not text:
        raise bad_request("input", "must be a string of 1 character or more")
    utterance = speech_pb2.Utterance(text=_sendable("input", text), voice=_voice(fields.get("voice")))
    for name, kind in (("seed", int), ("top_k", int), ("temperature", float)):
        _set(utterance.sampling, fields, name, kind)
    _set(utterance, fields, "max_audio_ms", int)
    request = speech_pb2.StreamSynthesizeRequest(
        utterance=utterance,
        output=speech_pb2.OutputOptions(container=FORMATS[format_].container, sample_rate_hz=RATE_HZ),
    )
    return Wanted(request, FORMATS[format_], stream_format == "sse")


def _choice(fields: dict[str, Any], name: str, choices: tuple[str, ...], default: str) -> str:
    value = fields.get(name)
    if value is None:
        return default
    if value not in choices:
        raise bad_request(name, f"must be one of {', '.join(choices)}")
    return str(value)


def _voice(value: Any) -> str:
    """A name, or OpenAI's `{"id": name}`."""
    if isinstance(value, dict):
        value = value.get("id")
    if value is None:
        return ""
    if not isinstance(value, str):
        raise bad_request("voice", "must be a name, or an object with an id")
    return _sendable("voice", value)


def _sendable(name: str, text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise bad_request(name, "holds half of a surrogate pair, which is no character") from None
    return text


def _set(message: Any, fields: dict[str, Any], name: str, kind: Callable[[Any], Any]) -> None:
    value = fields.get(name)
    if value is None:
        return
    if name == "seed" and isinstance(value, str) and value.isascii() and value.isdecimal():
        value = int(value[:32])  # JavaScript's numbers do not hold 64 bits
    if isinstance(value, bool) or not isinstance(value, int if kind is int else (int, float)):
        raise bad_request(name, "must be a whole number" if kind is int else "must be a number")
    try:
        setattr(message, name, kind(value))
    except (ValueError, TypeError, OverflowError):
        raise bad_request(name, "is a number that does not fit") from None
