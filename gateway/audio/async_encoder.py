"""An encoder for an event loop."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from gateway.audio.stream_encoder import StreamEncoder

_MAX_JOINED_INLINE = 262_144  # samples of a file that `finish` puts together
# Of their own: what else blocks in threads (stores, files) must not hold a listener's audio.
_THREADS = ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="encoder")


class AsyncEncoder:
    """A StreamEncoder whose work runs in a thread, unless the thread would cost more than the work. One call at a time."""

    def __init__(self, encoder: StreamEncoder):
        self.encoder = encoder

    async def feed(self, samples: np.ndarray) -> list[bytes]:
        """As StreamEncoder."""
        if len(samples) <= self.encoder.max_inline_samples:
            return self.encoder.feed(samples)
        return await asyncio.get_running_loop().run_in_executor(_THREADS, self.encoder.feed, samples)

    async def finish(self) -> list[bytes]:
        """As StreamEncoder."""
        if self.encoder.max_inline_samples and self.encoder.samples <= _MAX_JOINED_INLINE:
            return self.encoder.finish()
        return await asyncio.get_running_loop().run_in_executor(_THREADS, self.encoder.finish)
