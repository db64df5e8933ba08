"""Word and character errors, counted over many utterances."""

from __future__ import annotations

import jiwer


class Tally:
    """Errors over many utterances."""

    def __init__(self) -> None:
        self.want: list[str] = []
        self.got: list[str] = []

    def add(self, want: str, got: str) -> None:
        """Both already `plain`."""
        self.want.append(want)
        self.got.append(got)

    @property
    def wer(self) -> float:
        """Word errors over words, in per cent."""
        return 100 * jiwer.wer(self.want, self.got)

    @property
    def cer(self) -> float:
        """Character errors over characters, in per cent."""
        return 100 * jiwer.cer(self.want, self.got)

    @property
    def words(self) -> int:
        return sum(len(text.split()) for text in self.want)
