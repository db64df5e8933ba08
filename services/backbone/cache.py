"""The paged key-value cache: keys and values of every position in blocks, listed by block tables (blocks.py)."""

from __future__ import annotations

import torch
from torch import Tensor

from models.bundle import LlamaShape
from services.backbone.blocks import BLOCK_TOKENS


def block_bytes(shape: LlamaShape, dtype: torch.dtype) -> int:
    """Keys and values of one block in all layers."""
    return 2 * shape.layers * shape.kv_heads * BLOCK_TOKENS * (shape.dim // shape.heads) * dtype.itemsize


class PagedCache:
    """keys, values: [layers, KV, blocks, BLOCK_TOKENS, hd]: one head's positions of one block are contiguous."""

    def __init__(self, shape: LlamaShape, blocks: int, device: torch.device, dtype: torch.dtype):
        size = (shape.layers, shape.kv_heads, blocks, BLOCK_TOKENS, shape.dim // shape.heads)
        self.keys = torch.zeros(size, device=device, dtype=dtype)
        self.values = torch.zeros(size, device=device, dtype=dtype)

    def write(self, layer: int, blocks: Tensor, offsets: Tensor, k: Tensor, v: Tensor) -> None:
        """Write n positions. blocks, offsets (inside the block): [n] int64; k, v: [n, KV, hd]."""
        self.keys[layer, :, blocks, offsets] = k.transpose(0, 1)
        self.values[layer, :, blocks, offsets] = v.transpose(0, 1)

    def read(self, layer: int, table: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """The first `length` keys and values of a sequence, gathered: [1, KV, length, hd]. table: [b] int64."""
        keys, values = (
            store[layer].index_select(1, table).flatten(1, 2)[:, :length].unsqueeze(0)
            for store in (self.keys, self.values)
        )
        return keys, values
