"""The operations in torch: what the kernels must compute, and what a CPU runs.

N: rows of one call, each a token of some slot. slots, positions: [N] int64, the slot of a row and its
position there. tables: [S, W] int32, block tables of all slots. keys, values: [KV, blocks, BLOCK_TOKENS, hd],
one layer. overlap: programmatic dependent launch: a kernel may start before the previous one is over and
waits inside for what it reads. It changes speed, never results.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from services.backbone.blocks import BLOCK_TOKENS
from services.backbone.noise import gumbel_of


def add_norm(x: Tensor, delta: Tensor | None, scale: Tensor, eps: float, overlap: bool = False) -> Tensor:
    """x += delta, in place; returns RMSNorm(x) · scale, [N, D].

    x: [N, D] fp32. delta: [N, D], or [S, N, D], parts that are added up. scale: [D].
    """
    if delta is not None:
        x += delta if delta.ndim == 2 else delta.sum(dim=0)
    return F.rms_norm(x, (x.shape[1],), scale.float(), eps).to(scale.dtype)


def rope_write(
    qkv: Tensor,
    rope: Tensor,
    slots: Tensor,
    positions: Tensor,
    tables: Tensor,
    keys: Tensor,
    values: Tensor,
    heads: int,
) -> Tensor:
    """Rotate q and k by their positions, write k and v to the slots' blocks. Returns: q [N, H, hd].

    qkv: [N, (H + 2 KV) * hd]. rope: [max_seq_len, hd] fp32, (cos, sin) of each interleaved pair in turn.
    """
    count, kv_heads, head_dim = qkv.shape[0], keys.shape[0], keys.shape[-1]
    split = qkv.view(count, heads + 2 * kv_heads, head_dim)
    rotation = torch.view_as_complex(rope[positions].view(count, 1, head_dim // 2, 2))
    pairs = torch.view_as_complex(split[:, : heads + kv_heads].float().unflatten(-1, (-1, 2)))
    rotated = torch.view_as_real(pairs * rotation).flatten(-2).to(qkv.dtype)
    blocks = tables[slots, positions // BLOCK_TOKENS].long()
    keys[:, blocks, positions % BLOCK_TOKENS] = rotated[:, heads:].transpose(0, 1)
    values[:, blocks, positions % BLOCK_TOKENS] = split[:, heads + kv_heads :].transpose(0, 1)
    return rotated[:, :heads].contiguous()


def attend(
    q: Tensor, slots: Tensor, positions: Tensor, tables: Tensor, keys: Tensor, values: Tensor, splits: int = 1
) -> Tensor:
    """Each row attends to its slot's positions up to its own: softmax(q kᵀ / √hd) v in fp32. q: [N, H, hd].

    splits: parts that a kernel splits the context into, for more parallel work; ignored here.
    Returns: [N, H * hd].
    """
    count, heads, head_dim = q.shape
    kv_heads = keys.shape[0]
    length = int(positions.max()) + 1
    blocks = tables[slots, : -(-length // BLOCK_TOKENS)].long()  # [N, b]
    k, v = (store[:, blocks].flatten(2, 3)[:, :, :length].float() for store in (keys, values))  # [KV, N, length, hd]
    grouped = q.view(count, kv_heads, heads // kv_heads, head_dim).transpose(0, 1).float()
    scores = grouped @ k.transpose(-1, -2) / math.sqrt(head_dim)
    ahead = torch.arange(length, device=q.device) > positions.view(1, count, 1, 1)
    attended = torch.softmax(scores.masked_fill(ahead, float("-inf")), dim=-1) @ v
    return attended.transpose(0, 1).reshape(count, heads * head_dim).to(q.dtype)


def step_attend(
    qkv: Tensor, rope: Tensor, slots: Tensor, positions: Tensor, tables: Tensor, keys: Tensor, values: Tensor,
    heads: int, splits: int = 1, overlap: bool = False,
) -> Tensor:  # fmt: skip
    """rope_write and attend, one row a slot. Returns: [N, H * hd]."""
    q = rope_write(qkv, rope, slots, positions, tables, keys, values, heads)
    return attend(q, slots, positions, tables, keys, values, splits)


def aligned_attend(
    qkv: Tensor,
    rope: Tensor,
    position: int,
    blocks_per_slot: int,
    keys: Tensor,
    values: Tensor,
    heads: int,
    overlap: bool = False,
    picked: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """step_attend where row n is slot n, all are at `position`, and slot n has blocks_per_slot blocks from n * blocks_per_slot on.

    picked: [N] int64, the row of qkv that row n has; None where that is n. out: what is returned, if given.
    """
    qkv = qkv if picked is None else qkv[picked]
    slots = torch.arange(len(qkv), device=qkv.device)
    tables = torch.arange(len(qkv) * blocks_per_slot, device=qkv.device, dtype=torch.int32).view(-1, blocks_per_slot)
    attended = step_attend(qkv, rope, slots, torch.full_like(slots, position), tables, keys, values, heads)
    return attended if out is None else out.copy_(attended)


def norm_linear(x: Tensor, scale: Tensor, eps: float, weight: Tensor, overlap: bool = False) -> Tensor:
    """(RMSNorm(x) · scale) weightᵀ. x: [N, D] fp32; scale: [D]; weight: [M, D]. Returns: [N, M]."""
    return F.linear(add_norm(x, None, scale, eps), weight)


def norm_gated(x: Tensor, scale: Tensor, eps: float, gate_up: Tensor, overlap: bool = False) -> Tensor:
    """silu_mul of norm_linear. gate_up: [2 F, D], gate first. Returns: [N, F]."""
    return silu_mul(norm_linear(x, scale, eps, gate_up))


def linear_add(rows: Tensor, weight: Tensor, x: Tensor, overlap: bool = False) -> None:
    """x += rows weightᵀ, in place. rows: [N, M]; weight: [D, M]; x: [N, D] fp32."""
    x += F.linear(rows, weight)


def linear(rows: Tensor, weight: Tensor, overlap: bool = False) -> Tensor:
    """rows weightᵀ. rows: [N, M]; weight: [D, M]. Returns: [N, D]."""
    return F.linear(rows, weight)


def linear_parts(rows: Tensor, weight: Tensor, overlap: bool = False) -> Tensor:
    """linear() as what add_norm() adds up: [N, D], or parts, [S, N, D] fp32."""
    return F.linear(rows, weight)


def linear_gated(
    rows: Tensor, gate_up: Tensor, overlap: bool = False, squares: Tensor | None = None, eps: float = 0.0
) -> Tensor:
    """silu_mul of rows gate_upᵀ. rows: [N, D], see linear_scaled(); gate_up: [2 F, D], gate first. Returns: [N, F]."""
    return silu_mul(F.linear(rows, gate_up) if squares is None else linear_scaled(rows, squares, eps, gate_up))


def defers_norms(out: Tensor, down: Tensor) -> bool:
    """Whether linear_add_scaled() takes such weights, and linear_scaled() and linear_gated() what it gives."""
    return True


def empty_parts(device: torch.device) -> Tensor:
    """What linear_add_scaled() keeps partial sums in: one tensor for calls that follow one another."""
    return torch.empty(0, device=device)


def linear_add_scaled(rows: Tensor, weight: Tensor, x: Tensor, scale: Tensor, parts: Tensor) -> tuple[Tensor, Tensor]:
    """x += rows weightᵀ, in place, and RMSNorm(x) · scale but for its factor, which linear_scaled() applies.

    rows: [N, M]; weight: [D, M]; x: [N, D] fp32; scale: [D]. parts: of empty_parts().
    Returns: x · scale, [N, D], and sums of squares of parts of x, [N, T] fp32.
    """
    x += F.linear(rows, weight)
    return (x * scale.float()).to(scale.dtype), x.square().sum(dim=1, keepdim=True)


def linear_scaled(rows: Tensor, squares: Tensor | None, eps: float, weight: Tensor) -> Tensor:
    """rows weightᵀ / √(mean square + eps), or without a factor. rows: [N, D]; squares: [N, T]; weight: [M, D]. Returns: [N, M]."""
    product = F.linear(rows, weight)
    if squares is None:
        return product
    return (product.float() * (squares.sum(dim=1, keepdim=True) / rows.shape[1] + eps).rsqrt()).to(product.dtype)


def compile_deferring(
    counts: Iterable[int], qkv: Tensor, out: Tensor, gate_up: Tensor, down: Tensor, heads: Iterable[Tensor]
) -> None:
    """Compile, side by side, what products with deferred norms take for so many rows. heads: weights after the last norm."""


def silu_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) · up. gate_up: [N, 2 F], gate first. Returns: [N, F]."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    return (F.silu(gate) * up).to(gate_up.dtype)


def sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    seeds: Tensor,
    frames: Tensor,
    codebook: int,
    codes: Tensor,
    embeddings: Tensor | None = None,
    rows: Tensor | None = None,
    overlap: bool = False,
) -> None:
    """Draw one code for each row of logits, as sampling.sample with noise.gumbel does.

    logits: [B, bins]. temperature: [B] fp32. top_k, frames: [B] int64. seeds: [B] int64, the bits of
    a number in [0, 2^64). codes: [B, K] int64, column `codebook` is written. embeddings: [K, V, d],
    and rows: [B, d] of any type, which gets each code's row of embeddings[codebook].
    """
    logits = logits.float()
    noise = gumbel_of(seeds, frames, codebook, 1, logits.shape[1])[:, 0]
    ordered = logits.sort(dim=-1, descending=True).values
    threshold = ordered.gather(1, top_k.clamp(max=logits.shape[1]).unsqueeze(1) - 1)
    scores = torch.where(top_k.unsqueeze(1) == 1, logits, logits / temperature.unsqueeze(1) + noise)
    codes[:, codebook] = scores.masked_fill(logits < threshold, float("-inf")).argmax(dim=-1)
    if embeddings is not None and rows is not None:
        rows.copy_(embeddings[codebook, codes[:, codebook]])


def embed_frames(codes: Tensor, embeddings: Tensor) -> Tensor:
    """The sum of the embeddings of each frame's codes. codes: [B, K]; embeddings: [K, V, D]. Returns: [B, D] fp32."""
    codebooks = torch.arange(codes.shape[1], device=codes.device)
    return embeddings[codebooks, codes].float().sum(dim=1)
