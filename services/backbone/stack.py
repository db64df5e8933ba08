"""A Llama stack over a paged cache, as a short list of launches: what a captured frame is made of.

Computes what transformer.py does, with the same weights. The stream of residuals is fp32: in bf16 its
roundings were the greater part of the error in the logits. What lies between two products, or in one
launch with them, is an operation of kernels/, so that nothing makes the host wait.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from services.backbone.cache import PagedCache
from services.backbone.transformer import Transformer


@dataclass(frozen=True)
class Launches:
    """Which kernels a frame is made of. Results differ by rounding alone; which is fastest hangs on the batch.

    step: one launch turns, writes and attends, not two.
    products: of a single row, products that take in norm, activation and residual.
    gated: of many rows, the MLP's first product and its activation are one launch.
    packed: these products read weights of eight bits. That halves the bytes and is no longer the same model.
    overlap: where launches follow each other that allow it, the next one fetches its weights early.
    """

    step: bool = True
    products: bool = False
    gated: bool = False
    overlap: bool = False
    packed: bool = False


Weight = tuple[Tensor, Tensor | None]  # with the factors of its outputs if it is packed
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # (qkv, one layer's keys and values) → [N, H * hd]


class _Weights(NamedTuple):
    qkv: Weight
    out: Weight
    gate_up: Weight
    down: Weight


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
        self._weights = [
            _Weights((layer.qkv, None), (layer.out, None), (layer.gate_up, None), (layer.down, None))
            for layer in self._layers
        ]
        self._packed: list[_Weights] | None = None

    def pack(self) -> None:
        """Have the layers' weights in eight bits too, for launches that are `packed`."""
        pack = self._operations.pack
        self._packed = [
            _Weights(pack(layer.qkv), pack(layer.out), pack(layer.gate_up), pack(layer.down)) for layer in self._layers
        ]

    def paged(
        self, slots: Tensor, positions: Tensor, tables: Tensor, splits: int = 1, launches: Launches | None = None
    ) -> Attend:
        """Attention of rows of any slots and positions: [N] int64 each; no two rows that count have both in common.

        tables: [S, W] int32. splits: see kernels.plain.attend.
        launches: for rows that all lie in different slots; None where several are of one slot.
        """
        do, heads = self._operations, self.shape.heads
        overlap = launches is not None and launches.overlap

        def attend(qkv: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            cached = slots, positions, tables, keys, values
            if launches is not None and launches.step:
                return do.step_attend(qkv, self._rope, *cached, heads, splits, overlap)
            return do.attend(do.rope_write(qkv, self._rope, *cached, heads), *cached, splits)

        return attend

    def aligned(self, position: int, each: int, launches: Launches) -> Attend:
        """Attention where row n is slot n's, all rows are at one position, and slot n's `each` blocks follow slot n - 1's."""

        def attend(qkv: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            return self._operations.aligned_attend(
                qkv, self._rope, position, each, keys, values, self.shape.heads, launches.overlap
            )

        return attend

    def forward(self, x: Tensor, attend: Attend, launches: Launches) -> Tensor:
        """All layers.

        x: [N, D] fp32, overwritten. attend: of paged() or aligned().
        Returns: [N, D], what head() takes.
        """
        do, eps, overlap = self._operations, self.shape.norm_eps, launches.overlap
        normed = None if launches.products else do.add_norm(x, None, self._layers[0].attention_norm, eps)
        weights_of = self._weights if not launches.packed else self._packed
        assert weights_of is not None, "pack() first"
        for index, layer in enumerate(self._layers):
            keys, values, weights = self.cache.keys[index], self.cache.values[index], weights_of[index]
            is_last = index + 1 == len(self._layers)
            if normed is None:
                qkv, out, gate_up, down = weights
                qkv = do.norm_linear(x, layer.attention_norm, eps, *qkv, overlap)
                do.linear_add(attend(qkv, keys, values), *out, x, overlap)
                gated = do.norm_gated(x, layer.mlp_norm, eps, *gate_up, overlap)
                do.linear_add(gated, *down, x, overlap)
                continue
            attended = attend(F.linear(normed, layer.qkv), keys, values)
            normed = do.add_norm(x, F.linear(attended, layer.out), layer.mlp_norm, eps)
            gated = (
                do.linear_gated(normed, layer.gate_up)
                if launches.gated
                else do.silu_mul(F.linear(normed, layer.gate_up))
            )
            next_norm = self._norm if is_last else self._layers[index + 1].attention_norm
            normed = do.add_norm(x, F.linear(gated, layer.down), next_norm, eps)
        return x if normed is None else normed

    def head(self, out: Tensor, weight: Tensor, launches: Launches) -> Tensor:
        """The last norm and a product. out: rows of what forward gave with the same launches. Returns: [N, M]."""
        if launches.products:
            return self._operations.norm_linear(out, self._norm, self.shape.norm_eps, weight, None, launches.overlap)
        return F.linear(out, weight)
