"""One named voice: a clip, its words, and who may use it."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Any

NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}")
NAME_RULE = "must be 1 to 64 of a to z, 0 to 9, - and _, beginning with a letter"


@dataclass(frozen=True)
class NamedVoice:
    """Never changes. wav: the clip as it came, or as the library keeps it. created_s: seconds since 1970."""

    owner: str
    name: str
    speaker: int
    transcript: str
    language: str
    consent_statement: str
    audio_s: float
    created_s: float
    clip_sha256: str
    labels: dict[str, str] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Hash of what makes the voice; not of when it was created."""
        content = {key: value for key, value in vars(self).items() if key not in ("created_s", "audio_s")}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> bytes:
        """As the library keeps it."""
        return json.dumps(vars(self), ensure_ascii=False, indent=1, sort_keys=True).encode()

    @classmethod
    def from_json(cls, data: bytes) -> NamedVoice:
        """Raises: ValueError when this is no voice."""
        try:
            values: dict[str, Any] = json.loads(data)
            voice = cls(**values)
        except (TypeError, ValueError) as error:
            raise ValueError(f"not a voice: {error}") from error
        texts = (voice.owner, voice.name, voice.transcript, voice.language, voice.consent_statement, voice.clip_sha256)
        if not (all(isinstance(text, str) for text in texts) and isinstance(voice.speaker, int)):
            raise ValueError("not a voice: a field has the wrong type")
        if not NAME.fullmatch(voice.name):
            raise ValueError("not a voice: its name is wrong")
        return voice
