"""A request for speech, and its state on the way. Pure Python: no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from services.backbone.blocks import BlockTable
from services.backbone.prefix_keys import PrefixKeys


class FinishReason(Enum):
    """Why a request ended. The first two are normal ends."""

    END_OF_SPEECH = auto()
    MAX_LENGTH = auto()
    CANCELLED = auto()
    DEADLINE = auto()
    STALLED = auto()  # its reader took no frame for too long
    FAILED = auto()  # the engine broke

    @property
    def is_normal(self) -> bool:
        return self in (FinishReason.END_OF_SPEECH, FinishReason.MAX_LENGTH)


@dataclass(frozen=True)
class Sampling:
    """How a request's codes are drawn. top_k 1 is greedy. seed: [0, 2^64)."""

    temperature: float = 0.9
    top_k: int = 50
    seed: int = 0


@dataclass(frozen=True)
class Request:
    """What to generate.

    prompt: for the runner; opaque to the scheduler.
    max_frames: limit on the utterance, the `generated_frames` of an earlier stream included.
    deadline_s: on the scheduler's clock; None is never.
    prefill_tokens: tokens of the prompt, the frames already generated included.
    prefix_keys: of the prompt's blocks; empty shares nothing.
    held_back_frames: that later stages keep before its listener hears anything.
    """

    prompt: Any
    sampling: Sampling
    max_frames: int
    generated_frames: int = 0
    deadline_s: float | None = None
    prefill_tokens: int = 1
    prefix_keys: PrefixKeys = field(default_factory=PrefixKeys)
    held_back_frames: int = 0

    @property
    def max_tokens(self) -> int:
        """Positions it may take; the last frame takes none, as nothing attends to it."""
        return self.prefill_tokens + self.max_frames - self.generated_frames - 1


@dataclass(eq=False)
class SequenceState:
    """A request on its way. Times are on the scheduler's clock; None until it gets there."""

    request: Request
    submitted_s: float
    stream: Any = None  # the reader of its frames; opaque to the scheduler
    slot: int | None = None
    table: BlockTable | None = None
    next_frame: int = 0
    in_flight: int = 0
    unread_frames: int = 0
    admitted_s: float | None = None
    prefilled_s: float | None = None
    audible_s: float | None = None  # when the first frame beyond those held back was made
    ended_s: float | None = None
    finish: FinishReason | None = None
    paused_s: float | None = None
    prefix_keys: PrefixKeys = field(default_factory=PrefixKeys)  # of the prompt and the frames so far
    prefilling_from: int = 0  # block of the first of these keys
    prefilling_keys: Sequence[bytes] = ()  # keys of the blocks that its prefill computes and others wait for
