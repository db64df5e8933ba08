"""What a deployment's settings and its bundle say of every utterance."""

from __future__ import annotations

from dataclasses import dataclass, replace

from gateway.config import GatewaySettings
from gateway.lengths import frames_of_ms
from gateway.speech.ending import EndingRules
from gateway.speech.text_source import TextSource, TextWaits
from gateway.speech.units import UnitCutter, UnitLimits
from models.bundle import Bundle

# Positions that a character of text may take in the model, its speech included: a token of its own at worst, and the
# frames of the slowest speaker (0.11 s at 12.5 frames a second).
_POSITIONS_PER_CHARACTER = 2.4
_SPARE_POSITIONS = 60  # BOS, EOS, speaker, the ceiling's constant part
_MIN_UNIT_CHARS = 40


@dataclass(frozen=True)
class SpeechRules:
    """Of all requests alike. ramp_frames: see ChunkPolicy."""

    limits: UnitLimits
    waits: TextWaits
    ending: EndingRules
    ramp_frames: tuple[int, ...]
    resumes: int
    empty_retries: int
    language: str
    frame_rate_hz: float
    sample_rate_hz: int
    max_audio_ms: int | None
    listener_buffer_s: float

    @classmethod
    def of(cls, settings: GatewaySettings, bundle: Bundle, ramp_frames: list[int]) -> SpeechRules:
        """A bundle of random weights never ends by itself, and its text says nothing of its length: no ceiling."""
        ending = EndingRules(
            ceiling_factor=settings.ceiling_factor if bundle.trained else 0.0,
            silence_s=settings.silence_end_ms / 1000 if bundle.trained else 0.0,
        )
        return cls(
            UnitLimits(settings.unit_chars, min(100, settings.unit_chars), settings.first_unit_chars),
            TextWaits(settings.sentence_wait_ms / 1000, settings.first_wait_ms / 1000),
            ending,
            tuple(ramp_frames),
            settings.resumes,
            settings.empty_retries,
            bundle.languages[0] if bundle.languages else "en",
            bundle.frame_rate_hz,
            bundle.sample_rate_hz,
            settings.max_audio_ms,
            settings.listener_buffer_ms / 1000,
        )

    def text_source(self) -> TextSource:
        """For a turn's text. `TextSource.fit` its units to the model before it is spoken."""
        return TextSource(self.limits, self.language, self.waits)

    def parts(self, words: str, free_positions: int) -> list[str]:
        """`words` in parts that fit `free_positions` with their speech. Joined they are the words."""
        cutter = UnitCutter(self.unit_limits(free_positions), self.language)
        cutter.append(words)
        cutter.flush()
        cutter.first = False
        parts = []
        while (part := cutter.take()) is not None:
            parts.append(part)
        return parts

    def unit_limits(self, free_positions: int) -> UnitLimits:
        """Of units that must fit `free_positions` of the model with their speech."""
        fitting = int((free_positions - _SPARE_POSITIONS) / _POSITIONS_PER_CHARACTER)
        chars = max(_MIN_UNIT_CHARS, min(self.limits.max_chars, fitting))
        join, first = min(self.limits.join_chars, chars), min(self.limits.first_chars, chars)
        return replace(self.limits, max_chars=chars, join_chars=join, first_chars=first)

    @property
    def frame_samples(self) -> int:
        """Samples of a frame."""
        return round(self.sample_rate_hz / self.frame_rate_hz)

    def max_frames(self, asked_ms: int | None) -> int | None:
        """The cap on a turn's frames: the caller's and the deployment's, rounded up to whole frames; None is none."""
        caps = [cap for cap in (asked_ms, self.max_audio_ms) if cap is not None]
        return frames_of_ms(min(caps), self.frame_rate_hz) if caps else None
