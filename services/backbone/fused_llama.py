"""A Llama transformer over a paged cache, as a short list of kernel launches: what a captured frame is made of.

Computes what transformer.py does, with the same weights. The residual stream is fp32: in bf16 its
rounding was most of the error in the logits. What lies between two matrix products, or is fused with
them, is an operation of kernels/, so that nothing makes the host wait.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from services.backbone.cache import PagedCache
from services.backbone.kernels.persistent import DepthWeights
from services.backbone.transformer import Transformer


@dataclass(frozen=True)
class KernelPlan:
    """Which kernels a frame is made of. Results differ by rounding alone; which is fastest depends on the batch size.

    step_attention: rotation, cache write and attention are one launch instead of two.
    matvec: for a batch of one, products fused with norm, activation and residual.
    gated_matmul: for a larger batch, the MLP's first product and its activation are one launch.
    split_products: for some hundred rows, `out` and `down` give partial sums, which the norm adds up.
    overlap: programmatic dependent launch: a kernel starts, and may prefetch its weights, while the previous one ends.
    persistent_depth: the depth decoder's whole frame is one launch (kernels/persistent.py).
    """

    step_attention: bool = True
    matvec: bool = False
    gated_matmul: bool = False
    split_products: bool = False
    overlap: bool = False
    persistent_depth: bool = False


# (qkv, one layer's keys and values) → [N, H * hd]; for aligned rows also which row of qkv each has, [N] int64
Attend = Callable[..., Tensor]


class FusedLlama:
    """Runs rows of any slots and positions at once; a row attends to its slot's positions up to its own."""

    def __init__(self, transformer: Transformer, blocks: int, operations: ModuleType):
        """blocks: of the cache. operations: kernels.operations_for the device."""
        weight = transformer.norm
        self.shape = transformer.shape
        self.cache = PagedCache(transformer.shape, blocks, weight.device, weight.dtype)
        self._layers, self._norm = transformer.layers, transformer.norm
        self._rope = torch.view_as_real(transformer.rope).flatten(1).contiguous()  # [max_seq_len, hd]
        self._ops = operations

    def packed_for_depth(
        self, projection: Tensor, heads: list[Tensor], table: Tensor, first_qkv: Tensor
    ) -> DepthWeights:
        """These weights as kernels/persistent.py reads them, and what the arguments of DepthWeights say."""
        layers = [(layer.qkv, layer.out, layer.gate_up, layer.down) for layer in self._layers]
        norms = [norm for layer in self._layers for norm in (layer.attention_norm, layer.mlp_norm)]
        return DepthWeights(
            layers, [*norms, self._norm], projection, heads, self._rope, table, first_qkv, self.shape.norm_eps
        )  # fmt: skip

    def paged_attention(
        self, slots: Tensor, positions: Tensor, tables: Tensor, splits: int = 1, plan: KernelPlan | None = None
    ) -> Attend:
        """Attention of rows of any slots and positions: [N] int64 each, no pair of them twice but for padding.

        tables: [S, W] int32. splits: see kernels.reference.attend.
        plan: for one row a slot; None where several rows are of one slot.
        """
        ops, heads = self._ops, self.shape.heads
        overlap = plan is not None and plan.overlap

        def attend(qkv: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            cached = slots, positions, tables, keys, values
            if plan is not None and plan.step_attention:
                return ops.step_attend(qkv, self._rope, *cached, heads, splits, overlap)
            return ops.attend(ops.rope_write(qkv, self._rope, *cached, heads), *cached, splits)

        return attend

    def aligned_attention(self, position: int, blocks_per_slot: int, plan: KernelPlan) -> Attend:
        """Attention where row n is slot n, all rows are at one position, and slots' blocks follow one another."""

        def attend(
            qkv: Tensor, keys: Tensor, values: Tensor, picked: Tensor | None = None, out: Tensor | None = None
        ) -> Tensor:
            return self._ops.aligned_attend(
                qkv, self._rope, position, blocks_per_slot, keys, values, self.shape.heads, plan.overlap, picked, out
            )

        return attend

    def first_attention(self, blocks_per_slot: int, plan: KernelPlan) -> Attend:
        """aligned_attention() of two rows a slot, at positions 0 and 1: all slots' first rows, then all their second."""

        def attend(qkv: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            out = qkv.new_empty(len(qkv), self.shape.heads * keys.shape[-1])
            for position, (own, attended) in enumerate(zip(qkv.chunk(2), out.chunk(2), strict=True)):
                self.aligned_attention(position, blocks_per_slot, plan)(own, keys, values, None, attended)
            return out

        return attend

    def first_qkv(self, x: Tensor) -> Tensor:
        """The first layer's norm and qkv of inputs, which forward() takes as `known`. x: [N, D]. Returns: [N, (H + 2 KV) hd]."""
        first = self._layers[0]
        return F.linear(self._ops.add_norm(x.float(), None, first.attention_norm, self.shape.norm_eps), first.qkv)

    def forward(
        self, x: Tensor, attend: Attend, plan: KernelPlan, known: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """All layers.

        x: [N, D] fp32, overwritten. attend: from paged_attention() or aligned_attention().
        known: the first layer's qkv, [V, (H + 2 KV) hd], and which of its rows each of x has, [N] int64; for
            aligned_attention() alone. None computes it.
        Returns: [N, D], what head() takes.
        """
        ops, eps, overlap = self._ops, self.shape.norm_eps, plan.overlap
        product = ops.linear_parts if plan.split_products else ops.linear
        normed = None
        if known is None and not plan.matvec:
            normed = ops.add_norm(x, None, self._layers[0].attention_norm, eps, overlap)
        for index, layer in enumerate(self._layers):
            keys, values = self.cache.keys[index], self.cache.values[index]
            is_last = index + 1 == len(self._layers)
            if index == 0 and known is not None:
                table, picked = known
                attended = attend(table, keys, values, picked)
            elif normed is None:
                attended = attend(ops.norm_linear(x, layer.attention_norm, eps, layer.qkv, overlap), keys, values)
            else:
                attended = attend(ops.linear(normed, layer.qkv, overlap), keys, values)
            if plan.matvec:
                ops.linear_add(attended, layer.out, x, overlap)
                gated = ops.norm_gated(x, layer.mlp_norm, eps, layer.gate_up, overlap)
                ops.linear_add(gated, layer.down, x, overlap)
                continue
            normed = ops.add_norm(x, product(attended, layer.out, overlap), layer.mlp_norm, eps, overlap)
            gated = (
                ops.linear_gated(normed, layer.gate_up, overlap)
                if plan.gated_matmul
                else ops.silu_mul(F.linear(normed, layer.gate_up))
            )
            next_norm = self._norm if is_last else self._layers[index + 1].attention_norm
            normed = ops.add_norm(x, product(gated, layer.down, overlap), next_norm, eps, overlap)
        return x if normed is None else normed

    def normed(self, out: Tensor, plan: KernelPlan) -> Tensor:
        """The last norm. out: rows of what forward gave with the same plan. Returns: [N, D], the weights' dtype."""
        return self._ops.add_norm(out, None, self._norm, self.shape.norm_eps) if plan.matvec else out

    def head(self, out: Tensor, weight: Tensor, plan: KernelPlan) -> Tensor:
        """The last norm and a product. out: rows of what forward gave with the same plan. Returns: [N, M]."""
        if plan.matvec:
            return self._ops.norm_linear(out, self._norm, self.shape.norm_eps, weight, plan.overlap)
        return self._ops.linear(out, weight, plan.overlap)
