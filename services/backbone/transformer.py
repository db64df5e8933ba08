"""A Llama transformer over N rows, each with its own position, and one attention callback.

Rows may belong to different requests; only `attend` knows which keys a row attends to. Knows
neither torchtune nor the cache. Attention is two matmuls and a softmax in fp32, with
no backend to choose: cuDNN's attention has returned wrong results with two kv heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.bundle import LlamaShape

# (layer, q [N, H, hd], k [N, KV, hd], v [N, KV, hd]) → attended [N, H, hd]
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class _Layer:
    attention_norm: Tensor  # [D]
    qkv: Tensor  # [(H + 2 KV) * hd, D]
    out: Tensor  # [D, H * hd]
    mlp_norm: Tensor  # [D]
    gate_up: Tensor  # [2 F, D]
    down: Tensor  # [D, F]


class Transformer:
    """One Llama stack over the weights of a torchtune decoder, shared, not copied.

    q, k, v and the two halves of the gated MLP are put side by side in memory, so that each is
    one matmul; the module's own parameters become views of the fused storage.
    """

    def __init__(self, module: Any, shape: LlamaShape, rope: Tensor):
        """module: torchtune's TransformerDecoder. rope: [max_seq_len, hd / 2] complex64, see model.rope_table."""
        self.shape = shape
        self.head_dim = shape.dim // shape.heads
        self.rope = rope
        self.norm: Tensor = module.norm.scale
        self.layers = [
            _Layer(
                attention_norm=layer.sa_norm.scale,
                qkv=_fuse(layer.attn.q_proj, layer.attn.k_proj, layer.attn.v_proj),
                out=layer.attn.output_proj.weight,
                mlp_norm=layer.mlp_norm.scale,
                gate_up=_fuse(layer.mlp.w1, layer.mlp.w3),
                down=layer.mlp.w2.weight,
            )
            for layer in module.layers
        ]

    def forward(self, rows: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Hidden states after the last norm.

        rows: [N, D]. positions: [N] int64, each row's position in its own sequence.
        Returns: [N, D].
        """
        heads, kv_heads = self.shape.heads, self.shape.kv_heads
        turning = (heads + kv_heads) * self.head_dim
        rotation = self.rope[positions].unsqueeze(1)
        count = rows.shape[0]
        for index, layer in enumerate(self.layers):
            qkv = F.linear(self._rms_norm(rows, layer.attention_norm), layer.qkv)
            qk = _rotate(qkv[:, :turning].view(count, heads + kv_heads, self.head_dim), rotation)
            v = qkv[:, turning:].view(count, kv_heads, self.head_dim)
            attended = attend(index, qk[:, :heads], qk[:, heads:], v)
            rows = rows + F.linear(attended.reshape(count, -1), layer.out)
            gate, up = F.linear(self._rms_norm(rows, layer.mlp_norm), layer.gate_up).chunk(2, dim=-1)
            rows = rows + F.linear(F.silu(gate) * up, layer.down)
        return self._rms_norm(rows, self.norm)

    def _rms_norm(self, rows: Tensor, scale: Tensor) -> Tensor:
        normed = F.rms_norm(rows.float(), (rows.shape[-1],), scale.float(), self.shape.norm_eps)
        return normed.to(rows.dtype)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Grouped-query attention: softmax(q kᵀ / √hd) v, the softmax in fp32.

    q: [B, H, Tq, hd]; k, v: [B, KV, Tk, hd], H a multiple of KV; mask: [Tq, Tk], true where
    a query may look. Returns: [B, H, Tq, hd].
    """
    batch, heads, queries, head_dim = q.shape
    kv_heads, keys = k.shape[1], k.shape[2]
    grouped = q.reshape(batch, kv_heads, heads // kv_heads * queries, head_dim)
    scores = torch.matmul(grouped, k.transpose(-1, -2)).float() * (1.0 / math.sqrt(head_dim))
    if mask is not None:
        scores = scores.view(batch, heads, queries, keys).masked_fill(~mask, float("-inf"))
        scores = scores.view(batch, kv_heads, heads // kv_heads * queries, keys)
    attended = torch.matmul(torch.softmax(scores, dim=-1).to(v.dtype), v)
    return attended.view(batch, heads, queries, head_dim)


def _rotate(heads: Tensor, rotation: Tensor) -> Tensor:
    """RoPE on interleaved pairs. heads: [N, H, hd], rotation: [N, 1, hd / 2] complex."""
    pairs = torch.view_as_complex(heads.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotation).flatten(-2).to(heads.dtype)


def _fuse(*linears: nn.Linear) -> Tensor:
    """One weight [sum of outputs, in]; the linears' own weights become slices of it."""
    fused = torch.cat([linear.weight for linear in linears])
    start = 0
    for linear in linears:
        stop = start + linear.weight.shape[0]
        linear.weight = nn.Parameter(fused[start:stop], requires_grad=False)
        start = stop
    return fused
