"""Mimi's decoder for many streams at once, each in a slot of its own. Knows no grpc and no threads.

moshi keeps streaming state in its modules, one row for each stream of a fixed batch, and masks the
rows that have nothing to do. Masked rows cost what working ones do, and its ring KV cache is
written for them too. Here the state of all slots lies in pools; a pass gathers the rows of the
slots that have frames, lets moshi's own modules run on a batch of just those, and puts them back:

    pools [slots, …] ── rows ──▶ states [n, …] ── decode [n, K, T] ──▶ audio [n, T · 1920]
          ▲                         │
          └──────────── rows ───────┘

A pass is `_run(rows, codes)`: tensors in, tensors out, one shape for each (streams, frames), no
host sync inside. On a CUDA device passes are captured at the start (graphs.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager

import numpy as np
import torch
from moshi.models import MimiModel
from moshi.modules.conv import StreamingConv1d, StreamingConvTranspose1d
from moshi.modules.streaming import State, StreamingContainer, StreamingModule
from moshi.modules.transformer import (
    StreamingMultiheadAttention,
    StreamingTransformer,
    StreamingTransformerLayer,
)
from moshi.modules.transformer import _MHAState as AttentionState
from moshi.utils.compile import no_compile
from torch import Tensor

from services.codec.cache import SlotKVCache
from services.codec.graphs import PassGraphs

Rows = Tensor | slice
_MOST_STREAMS = 256  # of one captured pass; from there on the device has enough to do


class SlotDecoder:
    """Decodes frames of up to `slots` streams. To be used from one thread at a time.

    max_chunk_frames: most frames of one stream in one pass.
    """

    def __init__(self, mimi: MimiModel, *, slots: int, max_chunk_frames: int = 8, graphs: bool | None = None):
        """graphs: whether passes are filled up to few sizes, which warm_up() captures; None: on CUDA."""
        self.slots, self.max_chunk_frames = slots, max_chunk_frames
        self.codebooks, self.bins = mimi.num_codebooks, mimi.cardinality
        self.samples_per_frame = mimi.frame_size
        self._mimi = mimi
        self._device = next(mimi.parameters()).device
        self._convs: list[tuple[StreamingModule, str, torch.Size, slice]] = []
        self._caches: list[tuple[StreamingMultiheadAttention, SlotKVCache]] = []
        self._transformers: list[StreamingTransformer] = []
        width = self._collect()
        # One row more than slots, for what fills up a pass.
        self._conv_pool = torch.zeros(slots + 1, width, device=self._device)
        self._offsets = torch.zeros(slots + 1, dtype=torch.long, device=self._device)  # transformer steps done
        self._graphs: PassGraphs | None = None
        if self._device.type == "cuda" if graphs is None else graphs:
            most = min(slots, _MOST_STREAMS)
            self._graphs = PassGraphs(
                self._run,
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

    def reset(self, slot: int) -> None:
        """Make `slot` ready for a new stream."""
        self._conv_pool[slot] = 0
        self._offsets[slot] = 0

    @torch.inference_mode()
    def decode(self, batch: Sequence[tuple[int, np.ndarray]]) -> list[np.ndarray]:
        """Decode the next frames of some streams.

        batch: (slot, codes [n, K]); slots differ, 1 ≤ n ≤ max_chunk_frames, codes < bins. Chunks of the
            same length share a pass.
        Returns: float32 samples [n * samples_per_frame] of each, in the order given.
        """
        if len({slot for slot, _ in batch}) != len(batch):
            raise ValueError("a slot occurs twice in one batch")
        audio: list[np.ndarray | None] = [None] * len(batch)
        for frames in sorted({len(codes) for _, codes in batch}):
            if not 1 <= frames <= self.max_chunk_frames:
                raise ValueError(f"{frames} frames in a chunk, must be 1 to {self.max_chunk_frames}")
            # In the order of their slots: neighbours are read in place instead of gathered.
            chosen = sorted((slot, i) for i, (slot, codes) in enumerate(batch) if len(codes) == frames)
            most = len(chosen)
            if self._graphs is not None and frames in self._graphs.frames:
                most = self._graphs.most_streams
            for start in range(0, len(chosen), most):
                part = chosen[start : start + most]
                codes = np.stack([batch[i][1].T for _, i in part]).astype(np.int64)  # [n, K, T]
                for (_, i), row in zip(part, self._pass([slot for slot, _ in part], codes), strict=True):
                    audio[i] = row
        return audio  # type: ignore[return-value]  # every index was filled

    def _pass(self, slots: list[int], codes: np.ndarray) -> np.ndarray:
        """codes [n, K, T] of ascending slots → samples [n, T * samples_per_frame]."""
        if self._graphs is not None and codes.shape[2] in self._graphs.frames:
            return self._graphs(slots, codes)
        samples = self._run(self._rows(slots), torch.from_numpy(codes).to(self._device))
        return samples[:, 0].cpu().numpy()

    def _run(self, rows: Rows, codes: Tensor) -> Tensor:
        """One pass: codes [n, K, T] of the streams in `rows` → audio [n, 1, T * samples_per_frame]."""
        mimi = self._mimi
        conv_state = self._conv_pool[rows]
        with self._installed(rows, conv_state, self._offsets[rows]), no_compile():
            # As MimiModel.decode, without its CUDA graphs, which know one batch size only.
            latents = mimi.upsample(mimi.quantizer.decode(codes))  # [n, D, steps]
            (hidden,) = mimi.decoder_transformer(latents)
            audio = mimi.decoder(hidden)
        if not isinstance(rows, slice):  # a slice is a view: already written
            self._conv_pool[rows] = conv_state
        self._offsets[rows] += latents.shape[-1]
        return audio

    def _rows(self, slots: list[int]) -> Rows:
        """Ascending slots as a slice when they are neighbours, else as an index."""
        if slots[-1] - slots[0] == len(slots) - 1:
            return slice(slots[0], slots[-1] + 1)
        return torch.tensor(slots, device=self._device)

    @contextmanager
    def _installed(self, rows: Rows, conv_state: Tensor, offsets: Tensor):
        """moshi's modules in streaming mode on the given rows; one-shot again afterwards."""
        n = len(offsets)
        modules: list[StreamingModule] = []

        def install(module: StreamingModule, state: State) -> None:
            module._streaming_state = state
            modules.append(module)

        try:
            for conv, name, shape, columns in self._convs:
                state = conv._init_streaming_state(n)
                setattr(state, name, conv_state[:, columns].unflatten(1, shape))
                install(conv, state)
            for transformer in self._transformers:
                state = transformer._init_streaming_state(n)
                state.offsets.copy_(offsets)
                install(transformer, state)
            for attention, cache in self._caches:
                # Each moves its own offsets on.
                view = cache.view(rows, offsets)
                install(
                    attention, AttentionState(n, self._device, view, offset=offsets.clone(), offset_cpu=0)
                )
            yield
        finally:
            for module in modules:
                module._streaming_state = None

    def _collect(self) -> int:
        """Find the modules that keep state on the way from codes to audio; width of the convolutions' state."""
        mimi, width = self._mimi, 0
        parts = (mimi.upsample, mimi.decoder_transformer, mimi.decoder)
        for module in (module for part in parts for module in part.modules()):
            if isinstance(module, StreamingConv1d | StreamingConvTranspose1d):
                name = "previous" if isinstance(module, StreamingConv1d) else "partial"
                if getattr(module, "pad_mode", "constant") != "constant":
                    raise RuntimeError("a decoder with replicate padding is not supported")
                shape = getattr(module._init_streaming_state(1), name).shape[1:]
                self._convs.append((module, name, shape, slice(width, width + shape.numel())))
                width += shape.numel()
            elif isinstance(module, StreamingMultiheadAttention):
                # 1 for an upsampling of 1: each frame is so many steps of the transformer.
                steps = self.max_chunk_frames * round(mimi.encoder_frame_rate / mimi.frame_rate)
                self._caches.append((module, SlotKVCache(module, self.slots + 1, steps, self._device)))
            elif isinstance(module, StreamingTransformer):
                self._transformers.append(module)
            elif isinstance(module, StreamingModule) and not isinstance(
                module, StreamingContainer | StreamingTransformerLayer
            ):
                raise RuntimeError(f"{type(module).__name__} keeps a streaming state that is not known here")
        return width
