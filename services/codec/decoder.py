"""Mimi's decoder for many streams at once, each in its own slot. Knows no grpc and no threads.

The state of all slots lies in pools (network.py); a pass works on the slots that have frames. Passes are
`run(rows, codes)`: tensors in, tensors out, one shape per (streams, frames), without host synchronisation. On a
CUDA device they are captured at start-up (graphs.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from moshi.models import MimiModel

from services.codec.graphs import PassGraphs
from services.codec.network import DecoderNetwork
from services.engine.graphs import on_device

_MAX_BATCH = 256  # streams of one pass; larger batches are no faster per stream
# Batch sizes that passes are padded to. Between 16 and 256 two for each doubling: a third of what passes computed was padding.
_BATCH_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)


class SlotDecoder:
    """Decodes frames of up to `slots` streams. Not thread-safe.

    max_chunk_frames: of one stream in one pass. max_batch: streams of one pass.
    """

    def __init__(
        self,
        mimi: MimiModel,
        *,
        slots: int,
        max_chunk_frames: int = 8,
        graphs: bool | None = None,
        precision: str = "fp32",
    ):
        """graphs: whether passes are padded to few sizes, which warm_up() captures; None: on CUDA.

        precision: of products, one of kernels.PRECISIONS.
        Raises: network.UnknownShape.
        """
        self.slots, self.max_chunk_frames, self.max_batch = slots, max_chunk_frames, min(slots, _MAX_BATCH)
        self.codebooks, self.bins = mimi.num_codebooks, mimi.cardinality
        self.samples_per_frame = mimi.frame_size
        self._device = next(mimi.parameters()).device
        self.overlaps = self._device.type == "cuda"
        with torch.inference_mode():  # one slot more, for padding rows
            self._network = DecoderNetwork(
                mimi, slots=slots + 1, max_chunk_frames=max_chunk_frames, precision=precision
            )
        self._graphs: PassGraphs | None = None
        if self._device.type == "cuda" if graphs is None else graphs:
            limit = self.max_batch
            self._graphs = PassGraphs(
                self._network.run,
                device=self._device,
                codebooks=self.codebooks,
                padding_slot=slots,
                streams=[*(size for size in _BATCH_SIZES if size < limit), limit],
                frames=[1 << bit for bit in range(max_chunk_frames.bit_length())],
            )

    @property
    def history_frames(self) -> int:
        """Frames before a frame that its audio depends on."""
        return self._network.history_frames

    def warm_up(self) -> None:
        """Prepare everything that the first stream would otherwise wait for."""
        if self._graphs is not None:
            self._graphs.capture()
        else:
            self.decode([(0, np.zeros((1, self.codebooks), dtype=np.int64))])
            self.reset(0)

    @torch.inference_mode()
    def reset(self, slot: int) -> None:
        """Prepare `slot` for a new stream."""
        self._network.reset(slot)

    def decode(self, batch: Sequence[tuple[int, np.ndarray]]) -> list[np.ndarray]:
        """As begin(), and waits for the pass."""
        return self.begin(batch)()

    @torch.inference_mode()
    def begin(self, batch: Sequence[tuple[int, np.ndarray]]) -> Callable[[], list[np.ndarray]]:
        """Start to decode the next frames of some streams. Several passes may be in flight.

        batch: (slot, codes [n, K]); slots differ, 1 ≤ n ≤ max_chunk_frames, codes < bins. Chunks of the
            same length share a pass.
        Returns: waits for the passes and returns float32 samples [n * samples_per_frame] of each, in order.
        """
        if len({slot for slot, _ in batch}) != len(batch):
            raise ValueError("a slot occurs twice in one batch")
        chunks: dict[int, list[int]] = {}
        for index, (_, chunk) in enumerate(batch):
            chunks.setdefault(len(chunk), []).append(index)
        if not all(1 <= frames <= self.max_chunk_frames for frames in chunks):
            raise ValueError(f"{sorted(chunks)} frames in chunks, each must have 1 to {self.max_chunk_frames}")
        started = []  # of each pass: indices into the batch, and a function that waits for the samples
        for frames, indices in sorted(chunks.items()):
            graphs = self._graphs if self._graphs is not None and frames in self._graphs.frames else None
            limit = len(indices) if graphs is None else graphs.max_batch
            for start in range(0, len(indices), limit):
                part = indices[start : start + limit]
                slots, codes = [batch[index][0] for index in part], [batch[index][1] for index in part]
                wait = self._run_eager(slots, codes) if graphs is None else graphs.begin(slots, codes)
                started.append((part, wait))

        def result() -> list[np.ndarray]:
            audio = {index: row for part, wait in started for index, row in zip(part, wait(), strict=True)}
            return [audio[index] for index in range(len(batch))]

        return result

    def _run_eager(self, slots: list[int], codes: list[np.ndarray]) -> Callable[[], np.ndarray]:
        """codes: [T, K] of each → samples [n, T * samples_per_frame]."""
        with on_device(self._device):
            rows = torch.tensor(slots, device=self._device)
            samples = self._network.run(rows, torch.from_numpy(np.stack(codes)).long().to(self._device))
        return lambda: samples.cpu().numpy()
