"""When an utterance must end, though the model has not ended it.

CSM may go on for ever: it babbles, or is silent. Three rules bound it, all from the text: a ceiling on its length;
near silence beyond the length that the text should take ends it. (What is cut fades out: gateway/chain/fade.py.)
Knows no gRPC.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np

# Least squares over 400 sentences of the bundled model's teacher (four voices); the ratio of real to likely length is
# 0.7 to 1.6 there.
_START_S, _LETTER_S, _DIGIT_S, _CLAUSE_S, _SENTENCE_S = 0.1, 0.068, 0.3, 0.1, 0.4
_CLAUSE = re.compile(r"[,;:—]")
_SENTENCE = re.compile(r"[.!?…]+")


def words_s(text: str) -> float:
    """Seconds that a part of a text takes, as a guess; parts add up to their whole."""
    letters = sum(character.isalpha() for character in text)
    digits = sum(character.isdigit() for character in text)
    return (
        _LETTER_S * letters
        + _DIGIT_S * digits
        + _CLAUSE_S * len(_CLAUSE.findall(text))
        + _SENTENCE_S * len(_SENTENCE.findall(text))
    )


def likely_s(text: str) -> float:
    """Seconds that `text` takes to speak, as a guess. A text without an end has one all the same."""
    return _START_S + words_s(text) + (0.0 if _SENTENCE.search(text) else _SENTENCE_S)


@dataclass(frozen=True)
class EndingRules:
    """ceiling_factor: the longest speech is this many times the likely length, plus ceiling_s. 0: no ceiling.

    silence_s: this much near silence beyond the likely length ends the speech; 0: never. silence_dbfs: what counts as
    near silence, the level of a frame.
    """

    ceiling_factor: float = 2.0
    ceiling_s: float = 2.0
    silence_s: float = 1.2
    silence_dbfs: float = -50.0

    def ceiling_frames(self, text: str, frame_rate_hz: float) -> int | None:
        """The most frames that `text` may take; None: any number."""
        if self.ceiling_factor <= 0:
            return None
        return math.ceil((likely_s(text) * self.ceiling_factor + self.ceiling_s) * frame_rate_hz)


class SilenceEnd:
    """Finds where speech has ended in near silence. Give it each piece of one unit's audio in order."""

    def __init__(self, rules: EndingRules, text: str, sample_rate_hz: int):
        self._rules = rules
        self._expected = round(likely_s(text) * sample_rate_hz)
        self._needed = round(rules.silence_s * sample_rate_hz)
        self._quiet = 0
        self._samples = 0
        self._threshold = 10 ** (rules.silence_dbfs / 20)

    def feed(self, samples: np.ndarray, frame_samples: int) -> bool:
        """samples: float [T], whole frames. True once the speech is over."""
        if self._needed <= 0:
            return False
        for start in range(0, len(samples), frame_samples):
            frame = samples[start : start + frame_samples]
            level = math.sqrt(float(np.mean(np.square(frame, dtype=np.float64)))) if len(frame) else 0.0
            self._quiet = self._quiet + len(frame) if level < self._threshold else 0
            self._samples += len(frame)
        return self._samples > self._expected and self._quiet >= self._needed
