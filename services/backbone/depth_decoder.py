"""The depth decoder: a backbone hidden state to one frame of K codes.

Codebook 0 comes from the backbone's own head. Then the decoder reads two inputs (the projected
hidden state and codebook 0's embedding), then one a codebook. The output for codebook k - 1
predicts codebook k through audio_head[k - 1]. Its cache is valid for one frame: every frame
overwrites it from position 0.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from services.backbone.model import CsmModel, rope_table
from services.backbone.row_step import RowStep, step_attention
from services.backbone.transformer import Transformer

# (codebook, logits [B, audio_vocab] fp32) → codes [B] int64
ChooseCodes = Callable[[int, Tensor], Tensor]


class DepthDecoder:
    """Runs the decoder for exactly `batch` frames at a time."""

    def __init__(self, model: CsmModel, batch: int, *, copies: bool = False):
        """copies: whether it may hold weights a second time, as they are read fastest."""
        shape, weight = model.part.decoder, model.projection.weight
        self._model, self._batch = model, batch
        transformer = Transformer(model.decoder, shape, rope_table(shape, weight.device))
        self._step = RowStep(transformer, batch, copies=copies)
        self._rotations = transformer.rope[:, None, None].expand(-1, batch, 1, -1)  # [positions, B, 1, hd / 2]
        size = (shape.layers, batch, 2, shape.kv_heads, model.part.codebooks + 1, shape.dim // shape.heads)
        cache = torch.zeros(size, device=weight.device, dtype=weight.dtype)
        # Of each position and layer: where its keys and values go, and all keys and all values up to it.
        self._cache = [
            [(each[:, :, :, position], *each[:, :, :, : position + 1].unbind(1)) for each in cache]
            for position in range(model.part.codebooks)
        ]
        self._attend = [functools.partial(self._attend_at, position) for position in range(model.part.codebooks)]
        head, projection = model.codebook0_head.weight.T, weight.T
        self._head, self._projection = (each.contiguous() if copies else each for each in (head, projection))
        # The depth decoder's input for each code: [K * audio_vocab, d].
        self._inputs = F.linear(model.audio_embeddings.weight, weight) if copies else None

    def decode(self, hidden: Tensor, choose: ChooseCodes) -> Tensor:
        """Codes of one frame: hidden [B, D] → [B, K] int64. `choose` draws each codebook's codes."""
        model = self._model
        self._step.inputs.copy_(torch.mm(hidden, self._projection))
        codes = [choose(0, torch.mm(hidden, self._head).float())]
        self._run(0)
        for codebook in range(1, model.part.codebooks):
            self._step.inputs.copy_(self._embed(codebook - 1, codes[-1]))
            codes.append(choose(codebook, torch.mm(self._run(codebook), model.audio_head[codebook - 1]).float()))
        return torch.stack(codes, dim=1)

    def _run(self, position: int) -> Tensor:
        return self._step.run(self._rotations[position], self._attend[position])

    def _embed(self, codebook: int, codes: Tensor) -> Tensor:
        """[B] → [B, d]."""
        if self._inputs is None:
            return torch.mm(self._model.embed_code(codebook, codes), self._projection)
        return F.embedding(codes + codebook * self._model.part.audio_vocab_size, self._inputs)

    def _attend_at(self, position: int, layer: int, q: Tensor, kv: Tensor) -> Tensor:
        new, keys, values = self._cache[position][layer]
        new.copy_(kv)
        return step_attention(q, keys, values)
