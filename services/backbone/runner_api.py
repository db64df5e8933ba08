"""What the engine asks of a runner. Knows no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from services.backbone.blocks import Table
from services.backbone.prompt import Prompt
from services.backbone.scheduler import Sampling

# Call it to wait for a step's frames: K codes for each slot, in the order of the launch.
Pending = Callable[[], list[list[int]]]


class Runner(Protocol):
    """Runs the model for many slots; only ever called by the engine's thread.

    A slot's frames do not depend on which other slots share a step, nor on when others come and go.
    """

    frames_ahead: int  # steps that may be launched before the oldest one's frames are asked for

    def begin(self, slot: int, prompt: Prompt, sampling: Sampling, table: Table) -> None:
        """Put a prompt into a free slot; cheap.

        table: where its rows lie. It holds the prompt's rows now and grows before every step that
        needs it to; its first `cached_rows` rows need not be read again.
        """

    def prefill(self, slots: Sequence[int]) -> list[int]:
        """Read a bounded amount of these slots' prompts, the first slot's first. Returns: slots that can step now."""

    def launch(self, slots: Sequence[int]) -> Pending:
        """Start one frame for each of these slots; all its codes are below the codec's bins."""

    def release(self, slot: int) -> None:
        """The slot is free again, whatever is still under way for it; harmless when it was."""
