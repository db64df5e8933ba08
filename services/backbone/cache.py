"""Keys and values of every row of every slot, in blocks that a table lists (blocks.py)."""

from __future__ import annotations

import torch
from torch import Tensor

from models.bundle import LlamaShape
from services.backbone.blocks import BLOCK_ROWS


def block_bytes(shape: LlamaShape, dtype: torch.dtype) -> int:
    """Keys and values of one block in all layers."""
    return 2 * shape.layers * shape.kv_heads * BLOCK_ROWS * (shape.dim // shape.heads) * dtype.itemsize


class PagedCache:
    """keys, values: [layers, KV, blocks, BLOCK_ROWS, hd]: one head's rows of one block lie together."""

    def __init__(self, shape: LlamaShape, blocks: int, device: torch.device, dtype: torch.dtype):
        size = (shape.layers, shape.kv_heads, blocks, BLOCK_ROWS, shape.dim // shape.heads)
        self.keys = torch.zeros(size, device=device, dtype=dtype)
        self.values = torch.zeros(size, device=device, dtype=dtype)

    def write(self, layer: int, blocks: Tensor, rows: Tensor, k: Tensor, v: Tensor) -> None:
        """n rows, each into a row of a block. blocks, rows: [n] int64; k, v: [n, KV, hd]."""
        self.keys[layer, :, blocks, rows] = k.transpose(0, 1)
        self.values[layer, :, blocks, rows] = v.transpose(0, 1)

    def read(self, layer: int, table: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        """The first `rows` keys and values of a stream, [1, KV, rows, hd], copied together. table: [b] int64."""
        keys, values = (
            store[layer].index_select(1, table).flatten(1, 2)[:, :rows].unsqueeze(0)
            for store in (self.keys, self.values)
        )
        return keys, values
