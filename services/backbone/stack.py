"""A Llama stack over a paged cache, as a short list of launches: what a captured frame is made of.

Computes what transformer.py does, with the same weights. Four matrix products a layer, and between
them the operations of kernels/: on a CUDA device each is one launch and none makes the host wait.
"""

from __future__ import annotations

from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from services.backbone.cache import PagedCache
from services.backbone.transformer import Transformer


class Stack:
    """Rows of any slots and positions go through at once; a row sees its slot's rows up to itself."""

    def __init__(self, transformer: Transformer, blocks: int, operations: ModuleType):
        """blocks: of the cache. operations: kernels.operations_for the device."""
        weight = transformer.norm
        self.shape = transformer.shape
        self.cache = PagedCache(transformer.shape, blocks, weight.device, weight.dtype)
        self._layers, self._norm = transformer.layers, transformer.norm
        self._rope = torch.view_as_real(transformer.rope).flatten(1).contiguous()  # [max_rows, hd]
        self._operations = operations

    def forward(self, x: Tensor, slots: Tensor, positions: Tensor, tables: Tensor, splits: int = 1) -> Tensor:
        """Hidden states after the last norm.

        x: [N, D], overwritten. slots, positions: [N] int64; no two rows have both in common.
        tables: [S, W] int32. splits: see kernels.plain.attend.
        Returns: [N, D].
        """
        do, eps, heads = self._operations, self.shape.norm_eps, self.shape.heads
        normed = do.add_norm(x, None, self._layers[0].attention_norm, eps)
        next_norms = [layer.attention_norm for layer in self._layers[1:]] + [self._norm]
        for index, (layer, next_norm) in enumerate(zip(self._layers, next_norms, strict=True)):
            keys, values = self.cache.keys[index], self.cache.values[index]
            qkv = F.linear(normed, layer.qkv)
            q = do.rope_write(qkv, self._rope, slots, positions, tables, keys, values, heads)
            attended = do.attend(q, slots, positions, tables, keys, values, splits)
            normed = do.add_norm(x, F.linear(attended, layer.out), layer.mlp_norm, eps)
            gated = do.silu_mul(F.linear(normed, layer.gate_up))
            normed = do.add_norm(x, F.linear(gated, layer.down), next_norm, eps)
        return normed
