"""What waits in a conversation to be spoken, heard or applied, and what interrupts it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from csm.speech.v1 import speech_pb2

from gateway.speech.context import Segment
from gateway.speech.text_source import TextSource
from services.runtime.errors import CallError


@dataclass(frozen=True)
class ChosenVoice:
    """speaker: whose voice it is. prompt: of the named voice. heard: what the caller gave; None keeps what there was."""

    speaker: int
    prompt: list[Segment]
    heard: list[Segment] | None


@dataclass(frozen=True)
class Configuration:
    """Of the turns that follow it. starts_over: what was said before is forgotten."""

    options: speech_pb2.ConverseConfigure
    voice: asyncio.Task[ChosenVoice]
    starts_over: bool

    @property
    def is_ready(self) -> bool:
        """Whether its voice is chosen and its clips are encoded."""
        return self.voice.done()


@dataclass
class OwnTurn:
    """A turn of ours, from its first text on.

    dropped: interrupted before it began. over: text that still comes for it is not spoken. refusal: of the rest of its
    text. sent_samples: at the bundle's rate, as far as they count as heard. summary: once it has ended.
    """

    number: int
    text: TextSource
    configuration: Configuration
    dropped: bool = False
    over: bool = False
    refusal: CallError | None = None
    sent_samples: int = 0
    summary: speech_pb2.SpeechSummary = field(default_factory=speech_pb2.SpeechSummary)
    is_ready: bool = True


@dataclass(frozen=True)
class TheirTurn:
    """What the other party said, being encoded. size: of its clip, bytes."""

    segments: asyncio.Task[list[Segment]]
    size: int

    @property
    def is_ready(self) -> bool:
        """Whether it is encoded."""
        return self.segments.done()


Item = OwnTurn | TheirTurn | Configuration


@dataclass(frozen=True)
class Interrupt:
    """own: the turn that it names; None: the one that speaks, else the last one that was heard.

    keep_later: turns after the named one go on.
    """

    heard_s: float | None
    own: OwnTurn | None
    keep_later: bool = False

    def merged(self, other: Interrupt) -> Interrupt | None:
        """Both as one, when they mean the same turns: the one that has heard less counts."""
        if (self.own, self.keep_later) != (other.own, other.keep_later):
            return None
        heard = [one.heard_s for one in (self, other) if one.heard_s is not None]
        return Interrupt(min(heard, default=None), self.own, self.keep_later)
