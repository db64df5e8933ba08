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
from torch import Tensor

from services.backbone.model import CsmModel, rope_table
from services.backbone.transformer import Transformer, attention

# (codebook, logits [B, audio_vocab] fp32) → codes [B] int64
ChooseCodes = Callable[[int, Tensor], Tensor]


class DepthDecoder:
    """Runs the decoder for exactly `batch` frames at a time."""

    def __init__(self, model: CsmModel, batch: int):
        shape = model.part.decoder
        weight = model.projection.weight
        self._model = model
        self._batch = batch
        self._transformer = Transformer(model.decoder, shape, rope_table(shape, weight.device))
        cache_shape = (2, shape.layers, batch, shape.kv_heads, model.part.codebooks + 1, shape.dim // shape.heads)
        self._keys, self._values = torch.zeros(cache_shape, device=weight.device, dtype=weight.dtype)
        # [2B] positions of the first call: hidden states at 0, codebook 0 at 1
        self._first = torch.arange(2, device=weight.device).repeat_interleave(batch)
        self._causal = torch.ones(2, 2, dtype=torch.bool, device=weight.device).tril()

    def decode(self, hidden: Tensor, choose: ChooseCodes) -> Tensor:
        """Codes of one frame: hidden [B, D] → [B, K] int64. `choose` draws each codebook's codes."""
        model, batch = self._model, self._batch
        codes = [choose(0, model.codebook0_head(hidden).float())]
        inputs = model.projection(torch.cat([hidden, model.embed_code(0, codes[0])]))
        out = self._transformer.forward(inputs, self._first, self._attend_first)[batch:]
        for codebook in range(1, model.part.codebooks):
            codes.append(choose(codebook, torch.matmul(out, model.audio_head[codebook - 1]).float()))
            if codebook + 1 < model.part.codebooks:
                inputs = model.projection(model.embed_code(codebook, codes[-1]))
                positions = torch.full((batch,), codebook + 1, device=inputs.device)
                attend = functools.partial(self._attend_next, codebook + 1)
                out = self._transformer.forward(inputs, positions, attend)
        return torch.stack(codes, dim=1)

    def _attend_first(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Positions 0 and 1 of every frame: [2B, H, hd], all positions 0 first."""
        q, k, v = (x.unflatten(0, (2, self._batch)).permute(1, 2, 0, 3) for x in (q, k, v))
        self._keys[layer, :, :, :2] = k
        self._values[layer, :, :, :2] = v
        return attention(q, k, v, self._causal).permute(2, 0, 1, 3).flatten(0, 1)

    def _attend_next(self, position: int, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """One position of every frame: [B, H, hd]."""
        self._keys[layer, :, :, position] = k
        self._values[layer, :, :, position] = v
        keys, values = self._keys[layer, :, :, : position + 1], self._values[layer, :, :, : position + 1]
        return attention(q.unsqueeze(2), keys, values).squeeze(2)
