"""Mimi's decoder for many streams at once, each in a slot of its own. Knows no grpc and no threads.

The state of all slots lies in pools (network.py), and a pass works on the slots that have frames, by
their numbers. Passes are `run(rows, codes)`: tensors in, tensors out, one shape for each (streams, frames),
no host sync inside. On a CUDA device they are captured at the start (graphs.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from moshi.models import MimiModel

from services.codec.graphs import PassGraphs, on_device
from services.codec.network import DecoderNetwork

_MOST_STREAMS = 256  # of one captured pass; from there on the device has enough to do


class SlotDecoder:
    """Decodes frames of up to `slots` streams. To be used from one thread at a time.

    max_chunk_frames: most frames of one stream in one pass. most_streams: of one pass.
    """

    def __init__(
        self,
        mimi: MimiModel,
        *,
        slots: int,
        max_chunk_frames: int = 8,
        graphs: bool | None = None,
        exact: bool = True,
    ):
        """graphs: whether passes are filled up to few sizes, which warm_up() captures; None: on CUDA.

        exact: whether products keep fp32's bits, or TF32's.
        Raises: network.UnknownShape.
        """
        self.slots, self.max_chunk_frames, self.most_streams = slots, max_chunk_frames, min(slots, _MOST_STREAMS)
        self.codebooks, self.bins = mimi.num_codebooks, mimi.cardinality
        self.samples_per_frame = mimi.frame_size
        self._device = next(mimi.parameters()).device
        self.overlaps = self._device.type == "cuda"
        with torch.inference_mode():  # one slot more, for what fills up a pass
            self._network = DecoderNetwork(mimi, slots=slots + 1, max_chunk_frames=max_chunk_frames, exact=exact)
        self._graphs: PassGraphs | None = None
        if self._device.type == "cuda" if graphs is None else graphs:
            most = self.most_streams
            self._graphs = PassGraphs(
                self._network.run,
                device=self._device,
                codebooks=self.codebooks,
                spare=slots,
                streams=sorted({*(1 << bit for bit in range((most - 1).bit_length())), most}),
                frames=[1 << bit for bit in range(max_chunk_frames.bit_length())],
            )

    def warm_up(self) -> None:
        """Have everything ready that the first stream would otherwise wait for."""
        if self._graphs is not None:
            self._graphs.capture()
        else:
            self.decode([(0, np.zeros((1, self.codebooks), dtype=np.int64))])
            self.reset(0)

    @torch.inference_mode()
    def reset(self, slot: int) -> None:
        """Make `slot` ready for a new stream."""
        self._network.reset(slot)

    def decode(self, batch: Sequence[tuple[int, np.ndarray]]) -> list[np.ndarray]:
        """Decode the next frames of some streams, and wait for it. See begin()."""
        return self.begin(batch)()

    @torch.inference_mode()
    def begin(self, batch: Sequence[tuple[int, np.ndarray]]) -> Callable[[], list[np.ndarray]]:
        """Begin to decode the next frames of some streams; more may be begun before this is done.

        batch: (slot, codes [n, K]); slots differ, 1 ≤ n ≤ max_chunk_frames, codes < bins. Chunks of the
            same length share a pass.
        Returns: what waits for float32 samples [n * samples_per_frame] of each, in the order given.
        """
        if len({slot for slot, _ in batch}) != len(batch):
            raise ValueError("a slot occurs twice in one batch")
        chunks: dict[int, list[int]] = {}
        for index, (_, codes) in enumerate(batch):
            chunks.setdefault(len(codes), []).append(index)
        if not all(1 <= frames <= self.max_chunk_frames for frames in chunks):
            raise ValueError(f"{sorted(chunks)} frames in chunks, each must have 1 to {self.max_chunk_frames}")
        begun = []  # of each pass: which of the batch, and what waits for their samples
        for frames, chosen in sorted(chunks.items()):
            graphs = self._graphs if self._graphs is not None and frames in self._graphs.frames else None
            most = len(chosen) if graphs is None else graphs.most_streams
            for start in range(0, len(chosen), most):
                part = chosen[start : start + most]
                slots, codes = [batch[index][0] for index in part], [batch[index][1] for index in part]
                begun.append((part, self._as_it_comes(slots, codes) if graphs is None else graphs.begin(slots, codes)))

        def result() -> list[np.ndarray]:
            audio = {index: row for part, samples in begun for index, row in zip(part, samples(), strict=True)}
            return [audio[index] for index in range(len(batch))]

        return result

    def _as_it_comes(self, slots: list[int], codes: list[np.ndarray]) -> Callable[[], np.ndarray]:
        """codes: [T, K] of each → samples [n, T * samples_per_frame]."""
        with on_device(self._device):
            rows = torch.tensor(slots, device=self._device)
            samples = self._network.run(rows, torch.from_numpy(np.stack(codes)).long().to(self._device))
        return lambda: samples.cpu().numpy()
