"""What each token's callers use, as metrics: characters, seconds of audio, refusals.

The label is the token's name, of the first `max_names` of the file; the others share `(other)`, which cannot be a name.
Each process counts for itself, so a sum over gateways is the whole. Knows no gRPC.
"""

from __future__ import annotations

from collections.abc import Iterable

from services.runtime import instruments

OTHER = "(other)"
_REASONS = ("TOKEN_STREAMS", "TOKEN_CONVERSATIONS", "TOKEN_CHARACTERS")


class TokenMetrics:
    """Counts by token name. max_names: label values at most, `(other)` aside; 0 records nothing."""

    def __init__(self, max_names: int):
        self._max_names = max_names
        self._seen: set[str] = set()

    def begin(self, names: Iterable[str]) -> None:
        """Show the counters of these names, at 0. One that first appears with its first count hides it from rate()."""
        for name in names:
            if self._max_names:
                self._labels(name)

    def characters(self, name: str, count: int) -> None:
        """Text that is spoken for `name`."""
        if count and self._max_names:
            instruments.token_characters.add(count, self._labels(name))

    def audio(self, name: str, seconds: float) -> None:
        """Audio given to a caller of `name`."""
        if self._max_names:
            instruments.token_audio.add(seconds, self._labels(name))

    def refused(self, name: str, reason: str) -> None:
        """A call beyond the limits of `name`."""
        if self._max_names:
            instruments.token_refusals.add(1, {**self._labels(name), "reason": reason})

    def _labels(self, name: str) -> dict[str, str]:
        if name not in self._seen and len(self._seen) >= self._max_names:
            name = OTHER
        labels = {"csm.token": name}
        if name not in self._seen and name != OTHER:
            self._seen.add(name)
            instruments.token_characters.add(0, labels)
            instruments.token_audio.add(0, labels)
            for reason in _REASONS:
                instruments.token_refusals.add(0, {**labels, "reason": reason})
        return labels
