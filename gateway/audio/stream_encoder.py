"""What every encoder of a stream is."""

from __future__ import annotations

from typing import Protocol

import numpy as np


class FormatError(ValueError):
    """A format cannot be had. field: `format` or `sample_rate_hz`; description says what can."""

    def __init__(self, field: str, description: str):
        super().__init__(f"{field}: {description}")
        self.field, self.description = field, description


class StreamEncoder(Protocol):
    """Encodes one utterance: `feed` what there is, then `finish` once.

    Both give pieces: joined they are the file, and of `opus_packets` each piece is one packet. A header comes with
    the first piece. samples: those of the output so far, at its rate sample_rate_hz. max_inline_samples: of a
    piece that takes at most 0.3 ms, so that an event loop may wait for it; 0 for codecs.
    """

    content_type: str
    sample_rate_hz: int
    samples: int
    max_inline_samples: int

    def feed(self, samples: np.ndarray) -> list[bytes]:
        """samples: float32 [T] at the input's rate."""
        ...

    def finish(self) -> list[bytes]:
        """What is still held back, and the file's end."""
        ...
