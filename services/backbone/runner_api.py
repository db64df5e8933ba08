"""What the engine asks of a runner. Knows no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from services.backbone.prompt import Prompt
from services.backbone.scheduler import Sampling


class Runner(Protocol):
    """Runs the model for many slots; only ever called by the engine's thread.

    Any that keeps these four methods can take the eager runner's place (captured CUDA graphs, a
    paged cache), as long as a slot's frames do not depend on which other slots share a step.
    """

    def begin(self, slot: int, prompt: Prompt, sampling: Sampling) -> None:
        """Put a prompt into a free slot; cheap."""

    def prefill(self, slot: int) -> bool:
        """Read one bounded piece of the slot's prompt. Returns: whether the slot can step now."""

    def step(self, slots: Sequence[int]) -> list[list[int]]:
        """One frame for each of these slots, in their order: K codes each, all below the codec's bins."""

    def release(self, slot: int) -> None:
        """The slot is free again; harmless when it was."""
