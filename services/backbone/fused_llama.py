"""A Llama transformer over a paged cache, as a short list of kernel launches: what a captured frame is made of.

Computes what transformer.py does, with the same weights. The residual stream is fp32: in bf16 its
rounding was most of the error in the logits. What lies between two matrix products, or is fused with
them, is an operation of kernels/, so that nothing makes the host wait.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import NamedTuple

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
    deferred_norms: for many rows, `out` and `down` add to the residual and prepare the norm, whose factor the next products
        apply; where operations can (defers_norms), otherwise as without it.
    overlap: programmatic dependent launch: a kernel starts, and may prefetch its weights, while the previous one ends.
    persistent_depth: the depth decoder's whole frame is one launch (kernels/persistent.py).
    """

    step_attention: bool = True
    matvec: bool = False
    gated_matmul: bool = False
    split_products: bool = False
    deferred_norms: bool = False
    overlap: bool = False
    persistent_depth: bool = False


class Rows(NamedTuple):
    """What a product takes: [N, D]. Where `squares` are given, sums of squares [N, T] fp32, its sums get RMSNorm's factor.

    With KernelPlan.matvec these are the residual stream, fp32, whose norm is part of the product.
    """

    values: Tensor
    squares: Tensor | None = None


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
        first = self._layers[0]
        self._can_defer = operations.defers_norms(first.out, first.down)
        self._parts = operations.empty_parts(weight.device) if self._can_defer else None

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
        self, x: Tensor, attend: Attend, plan: KernelPlan, known: tuple[Tensor, Tensor] | None = None, last: int = 0
    ) -> Rows:
        """All layers.

        x: [N, D] fp32, overwritten. attend: from paged_attention() or aligned_attention().
        known: the first layer's qkv, [V, (H + 2 KV) hd], and which of its rows each of x has, [N] int64; for
            aligned_attention() alone. None computes it.
        last: if given, so many rows, the last ones, are wanted; of the others only keys and values. 0: all.
        Returns: what head() takes.
        """
        ops, eps, overlap = self._ops, self.shape.norm_eps, plan.overlap
        defers = self._defers(plan)
        product = ops.linear_parts if plan.split_products else ops.linear
        rows = None
        if known is None and not plan.matvec:
            rows = Rows(ops.add_norm(x, None, self._layers[0].attention_norm, eps, overlap))

        def add(to_add: Tensor, weight: Tensor, scale: Tensor) -> Rows:
            if defers:
                return Rows(*ops.linear_add_scaled(to_add, weight, x, scale, self._parts))
            return Rows(ops.add_norm(x, product(to_add, weight, overlap), scale, eps, overlap))

        for index, layer in enumerate(self._layers):
            keys, values = self.cache.keys[index], self.cache.values[index]
            is_last = index + 1 == len(self._layers)
            if index == 0 and known is not None:
                table, picked = known
                attended = attend(table, keys, values, picked)
            elif rows is None:
                attended = attend(ops.norm_linear(x, layer.attention_norm, eps, layer.qkv, overlap), keys, values)
            else:
                attended = attend(self._product(rows, layer.qkv, plan), keys, values)
            if is_last:
                attended, x = attended[-last:], x[-last:]
            if plan.matvec:
                ops.linear_add(attended, layer.out, x, overlap)
                gated = ops.norm_gated(x, layer.mlp_norm, eps, layer.gate_up, overlap)
                ops.linear_add(gated, layer.down, x, overlap)
                continue
            rows = add(attended, layer.out, layer.mlp_norm)
            gated = (
                ops.linear_gated(rows.values, layer.gate_up, overlap, rows.squares, eps)
                if plan.gated_matmul
                else ops.silu_mul(F.linear(rows.values, layer.gate_up))
            )
            rows = add(gated, layer.down, self._norm if is_last else self._layers[index + 1].attention_norm)
        return Rows(x) if rows is None else rows

    def compile(self, counts: Iterable[int], heads: Iterable[Tensor]) -> None:
        """Compile, side by side, what so many rows take with deferred norms. heads: head()'s weights."""
        if self._can_defer:
            first = self._layers[0]
            self._ops.compile_deferring(counts, first.qkv, first.out, first.gate_up, first.down, heads)

    def normed(self, out: Rows, plan: KernelPlan) -> Tensor:
        """The last norm. out: rows of what forward gave with the same plan, without deferred norms. Returns: [N, D], the weights' dtype."""
        return self._ops.add_norm(out.values, None, self._norm, self.shape.norm_eps) if plan.matvec else out.values

    def head(self, out: Rows, weight: Tensor, plan: KernelPlan) -> Tensor:
        """The last norm and a product. out: rows of what forward gave with the same plan. Returns: [N, M]."""
        if plan.matvec:
            return self._ops.norm_linear(out.values, self._norm, self.shape.norm_eps, weight, plan.overlap)
        return self._product(out, weight, plan)

    def _defers(self, plan: KernelPlan) -> bool:
        return plan.deferred_norms and plan.gated_matmul and self._can_defer

    def _product(self, rows: Rows, weight: Tensor, plan: KernelPlan) -> Tensor:
        if self._defers(plan):
            return self._ops.linear_scaled(rows.values, rows.squares, self.shape.norm_eps, weight)
        return self._ops.linear(rows.values, weight, plan.overlap)
