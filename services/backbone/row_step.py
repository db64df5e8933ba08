"""One step of a Llama transformer: a token of each of a fixed number of rows, in memory allocated once.

On a CPU a step is a thousand small operations, and starting one takes longer than its arithmetic. So there are few, they
write to buffers whose views are made once, and products have the form that MKL computes fastest for a few rows. Computes
what transformer.py does, rounded where it rounds: a prefix that was prefilled and one that was stepped must agree, in bf16
too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from services.backbone.transformer import Transformer, attention

# (layer, q [B, H, 1, hd], k and v [B, 2, KV, hd]) → attended [B, any shape of H * hd]
StepAttend = Callable[[int, Tensor, Tensor], Tensor]

_PADDING = 16  # columns behind a row, so that the next one is aligned as it is
_CACHED_BYTES = 8 << 20  # weights of a stack that stay in a processor's cache from step to step


class _Product:
    """rows weightᵀ, into `out`.

    MKL repacks a weight that it multiplies rows by, which doubles the bytes it moves; one that it multiplies columns by
    it does not. Columns are slower where the weight is in the cache (a frame of the bundled depth decoder, four rows, AMD
    EPYC: 1.34 ms by rows, 1.88 by columns), and faster where it is not (its backbone: 3.5 and 2.4 ms).
    """

    def __init__(self, weight: Tensor, out: Tensor, *, by_columns: bool, copies: bool):
        """weight: [O, I]. out: [B, O]. copies: whether the weight may be held a second time."""
        self._out = out
        self._columns = out.new_empty(out.shape[1], out.shape[0]) if by_columns else None
        if by_columns:
            self._weight = weight.contiguous()
        else:
            self._weight = weight.T.contiguous() if copies else weight.T

    def __call__(self, rows: Tensor) -> None:
        if self._columns is None:
            torch.mm(rows, self._weight, out=self._out)
        else:
            self._out.copy_(torch.mm(self._weight, rows.T, out=self._columns).T)

    def add_to(self, sums: Tensor, rows: Tensor) -> None:
        """sums += the product. sums: [B, O] fp32."""
        if self._columns is not None:
            sums.add_(torch.mm(self._weight, rows.T, out=self._columns).T)
        elif sums.dtype == self._weight.dtype:
            sums.addmm_(rows, self._weight)
        else:
            sums.add_(torch.mm(rows, self._weight, out=self._out))


class _Layer(NamedTuple):
    """A scale is None where it is in the weight."""

    attention_scale: Tensor | None  # [D]
    mlp_scale: Tensor | None
    qkv: _Product
    out: _Product
    gate_up: _Product
    down: _Product


class RowStep:
    """Steps of exactly `batch` rows. Not thread-safe: every step overwrites the one before, its results included.

    inputs: [batch, D] fp32, for the caller to fill before run().
    """

    def __init__(self, transformer: Transformer, batch: int, *, copies: bool = False):
        """copies: whether it may hold the weights a second time, as they are read fastest."""
        shape, weight = transformer.shape, transformer.norm
        heads, kv_heads, head_dim = shape.heads, shape.kv_heads, transformer.head_dim
        rotated = heads + kv_heads

        def buffer(width: int, dtype: torch.dtype = weight.dtype) -> Tensor:
            return torch.zeros(batch, width, device=weight.device, dtype=dtype)

        # RMSNorm(x) = x / sqrt(|x|² / D + eps) = sqrt(D) x / |(x, sqrt(D eps))|: one more column holds that root.
        self._rows = buffer(shape.dim + _PADDING, torch.float32)
        self._rows[:, shape.dim] = math.sqrt(shape.dim * shape.norm_eps)
        self.inputs = self._rows[:, : shape.dim]
        self._length, self._normed = buffer(1, torch.float32), buffer(shape.dim, torch.float32)
        self._dtype, self._is_fp32, self._eps = weight.dtype, weight.dtype == torch.float32, shape.norm_eps
        qkv = buffer((rotated + kv_heads) * head_dim)
        self._q = qkv[:, : heads * head_dim].view(batch, heads, 1, head_dim)
        self._kv = qkv[:, heads * head_dim :].view(batch, 2, kv_heads, head_dim)
        self._qk = qkv[:, : rotated * head_dim]
        # q and k in fp32, for the rotation; the same memory where they are fp32.
        self._qk_fp32 = self._qk if self._is_fp32 else buffer(rotated * head_dim, torch.float32)
        self._pairs = torch.view_as_complex(self._qk_fp32.view(batch, rotated, head_dim // 2, 2))
        gate_up, out = buffer(2 * shape.intermediate_dim), buffer(shape.dim)
        self._gate, self._up = gate_up.chunk(2, dim=-1)
        self._gated = buffer(shape.intermediate_dim)

        root = math.sqrt(shape.dim) if self._is_fp32 else 1.0  # F.rms_norm has it
        weights = [(layer.qkv, layer.out, layer.gate_up, layer.down) for layer in transformer.layers]
        is_large = sum(each.nbytes for layer in weights for each in layer) > _CACHED_BYTES
        by_columns = is_large and weight.device.type == "cpu" and self._is_fp32
        self._layers = []
        for layer, (to_qkv, to_out, to_gate_up, to_down) in zip(transformer.layers, weights, strict=True):
            norms = layer.attention_norm.float() * root, layer.mlp_norm.float() * root
            scales: tuple[Tensor | None, Tensor | None] = norms
            if copies and self._is_fp32:  # the scales in the weights, where that does not round them again
                to_qkv, to_gate_up = to_qkv * norms[0], to_gate_up * norms[1]
                scales = None, None
            pairs = ((to_qkv, qkv), (to_out, out), (to_gate_up, gate_up), (to_down, out))
            products = (_Product(*pair, by_columns=by_columns, copies=copies) for pair in pairs)
            self._layers.append(_Layer(*scales, *products))
        self._scale = transformer.norm.float() * root

    def run(self, rotation: Tensor, attend: StepAttend) -> Tensor:
        """rotation: of each row's position, [batch, 1, hd / 2] complex.

        Returns: hidden states after the last norm, [batch, D].
        """
        batch = len(self.inputs)
        for index, layer in enumerate(self._layers):
            layer.qkv(self._norm(layer.attention_scale))
            if not self._is_fp32:
                self._qk_fp32.copy_(self._qk)
            self._pairs.mul_(rotation)
            if not self._is_fp32:
                self._qk.copy_(self._qk_fp32)
            layer.out.add_to(self.inputs, attend(index, self._q, self._kv).view(batch, -1))
            if not self._is_fp32:
                self.inputs.copy_(self.inputs.to(self._dtype))
            layer.gate_up(self._norm(layer.mlp_scale))
            torch.mul(F.silu(self._gate, inplace=True), self._up, out=self._gated)
            layer.down.add_to(self.inputs, self._gated)
            if not self._is_fp32:
                self.inputs.copy_(self.inputs.to(self._dtype))
        return self._norm(self._scale)

    def _norm(self, scale: Tensor | None) -> Tensor:
        if not self._is_fp32:  # to the bit what the prefill computes
            return F.rms_norm(self.inputs, self.inputs.shape[1:], scale, self._eps).to(self._dtype)
        torch.linalg.vector_norm(self._rows, dim=1, keepdim=True, out=self._length)
        torch.div(self.inputs, self._length, out=self._normed)
        return self._normed if scale is None else self._normed.mul_(scale)


def step_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """transformer.attention of one query each, q [B, H, 1, hd], in one call on a CPU, which has one backend.

    In fp32 alone: shorter numbers it rounds elsewhere. What a row gets there does not depend on B.
    """
    if q.device.type != "cpu" or q.dtype != torch.float32:
        return attention(q, k, v)
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=q.shape[1] != k.shape[1])
