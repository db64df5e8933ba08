"""What a turn reports while it is spoken."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Started:
    """First event: every stage has admitted the turn."""

    seed: int
    prompt_tokens: int


@dataclass(frozen=True)
class UnitStarted:
    """Comes before the audio of its words. first_sample: in the turn's audio, at the bundle's rate."""

    text: str
    spoken_text: str
    first_sample: int


@dataclass(frozen=True)
class AudioChunk:
    """Marked audio, float32 [T] at the bundle's rate."""

    samples: np.ndarray


@dataclass(frozen=True)
class TextLate:
    """The listener has heard all there is, and the text is not complete."""


@dataclass(frozen=True)
class ContextDropped:
    """So many segments have left the context."""

    segments: int


@dataclass(frozen=True)
class NothingSpeakable:
    """A unit was left out. text: as it came."""

    text: str


TurnEvent = Started | UnitStarted | AudioChunk | TextLate | ContextDropped | NothingSpeakable
