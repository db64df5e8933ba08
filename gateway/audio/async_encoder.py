"""An encoder for an event loop."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from gateway.audio.stream_encoder import StreamEncoder

# Samples that are converted on the loop: the largest piece of the chain takes 0.3 ms, resampling included.
MAX_INLINE_SAMPLES = 16_384
# Of their own: what else blocks in threads (stores, files) must not hold a listener's audio.
_THREADS = ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="encoder")


class AsyncEncoder:
    """A StreamEncoder whose work runs in a thread, but for a few PCM samples. One call at a time."""

    def __init__(self, encoder: StreamEncoder):
        self.encoder = encoder

    async def feed(self, samples: np.ndarray) -> list[bytes]:
        """As StreamEncoder."""
        if not self.encoder.is_codec and len(samples) <= MAX_INLINE_SAMPLES:
            return self.encoder.feed(samples)
        return await asyncio.get_running_loop().run_in_executor(_THREADS, self.encoder.feed, samples)

    async def finish(self) -> list[bytes]:
        """As StreamEncoder."""
        if not self.encoder.is_codec and self.encoder.samples <= 16 * MAX_INLINE_SAMPLES:
            return self.encoder.finish()  # of a whole file that joins all of it
        return await asyncio.get_running_loop().run_in_executor(_THREADS, self.encoder.finish)
