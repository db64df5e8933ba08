"""Keys and values of every slot, one contiguous stretch of rows for each."""

from __future__ import annotations

import torch
from torch import Tensor

from models.bundle import LlamaShape


class SlotCache:
    """keys, values: [layers, slots, KV, max_rows, hd]. A slot's rows are overwritten by its next owner."""

    def __init__(self, shape: LlamaShape, slots: int, device: torch.device, dtype: torch.dtype):
        size = (shape.layers, slots, shape.kv_heads, shape.max_rows, shape.dim // shape.heads)
        self.keys = torch.zeros(size, device=device, dtype=dtype)
        self.values = torch.zeros(size, device=device, dtype=dtype)

    def write(self, layer: int, slots: Tensor, positions: Tensor, k: Tensor, v: Tensor) -> None:
        """One row in each of n slots. slots, positions: [n]; k, v: [n, KV, hd]."""
        self.keys[layer, slots, :, positions] = k
        self.values[layer, slots, :, positions] = v

    def write_run(self, layer: int, slot: int, start: int, k: Tensor, v: Tensor) -> None:
        """n rows of one slot from row `start`. k, v: [n, KV, hd]."""
        stop = start + k.shape[0]
        self.keys[layer, slot, :, start:stop] = k.transpose(0, 1)
        self.values[layer, slot, :, start:stop] = v.transpose(0, 1)

    def read(self, layer: int, slot: int, rows: int) -> tuple[Tensor, Tensor]:
        """The first `rows` keys and values of a slot, [1, KV, rows, hd], without a copy."""
        return self.keys[layer, slot : slot + 1, :, :rows], self.values[layer, slot : slot + 1, :, :rows]
