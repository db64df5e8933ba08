"""The interface between engine and runner. Knows no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from services.backbone.blocks import BlockTable
from services.backbone.prompt import Prompt
from services.backbone.request import Sampling

# Waits for a step's frames: codes [N, K], any integers, in the order of the launch. Valid until the launch after next.
Pending = Callable[[], np.ndarray]


class Runner(Protocol):
    """Runs the model for many slots; called by the engine's thread alone.

    A slot's frames do not depend on the other slots of a step, nor on when they start and end.
    """

    frames_ahead: int  # steps that may be launched before the oldest one is collected

    def begin(self, slot: int, prompt: Prompt, sampling: Sampling, table: BlockTable) -> None:
        """Put a prompt into a free slot; cheap.

        table: its blocks. It has room for the prompt now and grows before every step that
        needs it; its first `cached_tokens` positions are in the cache already.
        """

    def prefill(self, slots: Sequence[int]) -> list[int]:
        """Prefill a bounded amount of these slots' prompts, the first slot first. Returns: slots that can step now."""

    def prefilled_tokens(self, slot: int) -> int:
        """Tokens at the start of a slot's prompt that are in the cache, or will be before anything launched later."""

    def launch(self, slots: Sequence[int]) -> Pending:
        """Start one frame for each of these slots; all its codes are below the codec's bins."""

    def release(self, slot: int) -> None:
        """The slot is free again, even with a step in flight; harmless when it is free."""
