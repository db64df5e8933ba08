"""What the caller asks of a turn, and the seeds that its units have."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

from csm.common.v1 import common_pb2

from gateway.audit import AuditEntry


@dataclass(frozen=True)
class TurnOptions:
    """What the caller asks of a turn. seed: None is drawn. max_frames: a cap on all units together.

    patience_s: how long the turn waits for its first slots. streamed: whether the caller hears it while it is spoken.
    on_audio: is given the seconds of each piece of audio. audit: its entry in the audit trail.
    path, text_path: of what holds the options and the text in the caller's request, for errors.
    """

    speaker: int = 0
    sampling: common_pb2.SamplingOptions = field(default_factory=common_pb2.SamplingOptions)
    max_frames: int | None = None
    turn: int = 0
    key: str | None = None
    patience_s: float = 0.0
    streamed: bool = True
    on_audio: Callable[[float], None] = lambda seconds: None
    audit: AuditEntry | None = None
    path: str = "utterance"
    text_path: str = "utterance"


def unit_seed(seed: int, unit: int, attempt: int) -> int:
    """Of a turn's unit and of the attempt at it: those of the first are the turn's own. Turns' seeds may be neighbours."""
    if not unit and not attempt:
        return seed
    return int.from_bytes(hashlib.blake2b(f"{seed} {unit} {attempt}".encode(), digest_size=8).digest())
