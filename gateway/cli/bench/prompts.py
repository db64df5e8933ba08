"""Voice prompts as load: clips of speech-like noise that a request brings along, one for all or each its own."""

from __future__ import annotations

import io
import wave

import numpy as np
from csm_client import ContextTurn

RATE_HZ = 24_000
_TEXT = "This is the voice that the next sentence should have."
_SYLLABLES_HZ = 4.0


class Prompts:
    """seconds: of a clip; 0: there is none. is_shared: one clip for all, else a new one each time."""

    def __init__(self, seconds: float, is_shared: bool, speaker: int, seed: int):
        self._seconds, self._speaker = seconds, speaker
        self._random = np.random.default_rng(0 if is_shared else seed)  # of a shared one all processes make the same
        self._shared = self._make() if is_shared and seconds else None

    def next(self) -> tuple[ContextTurn, ...]:
        """For one utterance."""
        if not self._seconds:
            return ()
        return (self._shared or self._make(),)

    def _make(self) -> ContextTurn:
        samples = round(self._seconds * RATE_HZ)
        loudness = np.abs(np.sin(np.pi * _SYLLABLES_HZ * np.arange(samples) / RATE_HZ))
        pcm = (self._random.normal(0, 3000, samples) * loudness).clip(-32768, 32767).astype("<i2")
        file = io.BytesIO()
        with wave.open(file, "wb") as wav:
            wav.setnchannels(1)
            wav.setsampwidth(2)
            wav.setframerate(RATE_HZ)
            wav.writeframes(pcm.tobytes())
        return ContextTurn(self._speaker, _TEXT, file.getvalue())


def tokens(seconds: float, frame_rate_hz: float) -> int:
    """What a prompt takes of the model's tokens, at most."""
    return round(seconds * frame_rate_hz) + 2 + len(f"[0]{_TEXT}".encode()) + 2 if seconds else 0
