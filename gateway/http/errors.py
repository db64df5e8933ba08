"""Failures as OpenAI's clients read them: `{"error": {"message", "type", "param", "code"}}`.

What fails before the first audio has a status of its own. Afterwards only a broken connection is left.
"""

from __future__ import annotations

import json
import math

import grpc
from csm_client.exceptions import InvalidRequest, Overloaded, SpeechError

from services.runtime.errors import ResourceExhausted

_STATUSES = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.CANCELLED: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}
_RETRY_S = 1.0  # where the server named no time

# Fields of ours → OpenAI's; the longest name that fits counts.
_FIELDS = {
    "utterance.text": "input",
    "utterance.voice": "voice",
    "utterance.speaker": "voice",
    "utterance.max_audio_ms": "max_audio_ms",
    "utterance.sampling.seed": "seed",
    "utterance.sampling.temperature": "temperature",
    "utterance.sampling.top_k": "top_k",
    "output": "response_format",
    "wav": "file",
    "audio": "file",
}


class HttpError(Exception):
    """An answer that is no success. param: the field of the request. retry_after_s: when to try again."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_after_s = retry_after_s

    @property
    def type(self) -> str:
        """OpenAI's word for the kind of error."""
        if self.status == 429:
            return "rate_limit_error"
        return "server_error" if self.status >= 500 else "invalid_request_error"

    def fields(self) -> dict[str, object]:
        """The value of `error`."""
        return {"message": self.message, "type": self.type, "param": self.param, "code": self.code}

    def body(self) -> bytes:
        """The answer."""
        return json.dumps({"error": self.fields()}).encode()

    def headers(self) -> list[tuple[bytes, bytes]]:
        """The answer's, but for its length."""
        headers = [(b"content-type", b"application/json")]
        if self.retry_after_s is not None:
            # Whole seconds are the standard's; OpenAI's clients look for milliseconds first.
            headers.append((b"retry-after", str(max(1, math.ceil(self.retry_after_s))).encode()))
            headers.append((b"retry-after-ms", str(max(1, math.ceil(1000 * self.retry_after_s))).encode()))
        if self.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        return headers


def bad_request(param: str | None, message: str) -> HttpError:
    """A field of the request breaks a limit."""
    return HttpError(400, f"{param}: {message}" if param else message, param=param, code="invalid_value")


def from_speech_error(error: SpeechError) -> HttpError:
    """What a failed call to the gateway means to an HTTP caller."""
    status = _STATUSES.get(error.code, 500)
    if isinstance(error, InvalidRequest):
        return _invalid(error)
    retry_after_s = None
    if isinstance(error, Overloaded):
        retry_after_s = error.retry_after_s or _RETRY_S
    elif status == 503:
        retry_after_s = _RETRY_S
    code = "invalid_api_key" if status == 401 else "rate_limit_exceeded" if status == 429 else _code(error.reason)
    return HttpError(status, " ".join(str(error).split()), code=code, retry_after_s=retry_after_s)


def too_many_requests(error: ResourceExhausted) -> HttpError:
    """This process itself has no room."""
    return HttpError(429, error.text, code="rate_limit_exceeded", retry_after_s=_RETRY_S)


def _invalid(error: InvalidRequest) -> HttpError:
    if not error.violations:
        return HttpError(400, " ".join(str(error).split()), code=_code(error.reason) or "invalid_value")
    field, description = error.violations[0]
    found = HttpError(400, "", param=_param(field), code=_code(error.reason) or "invalid_value")
    found.message = f"{found.param}: {' '.join(description.split())}"
    return found


def _param(field: str) -> str:
    for ours in sorted(_FIELDS, key=len, reverse=True):
        if field == ours or field.startswith((f"{ours}.", f"{ours}[")):
            return _FIELDS[ours]
    return field


def _code(reason: str | None) -> str | None:
    return reason.lower() if reason else None
