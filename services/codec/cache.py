"""Keys and values of the last steps of every slot, for one attention layer."""

from __future__ import annotations

import torch
from moshi.modules.transformer import KVCacheResult, StreamingMultiheadAttention
from torch import Tensor


class SlotKVCache:
    """A ring for each slot; step p lies at p mod capacity.

    Capacity is context + most steps of a pass - 1. moshi's own ring is just `context` long: when more
    than one step is written at once, the last ones overwrite what the first ones still look at, and
    the result differs from one-shot as soon as the ring is full.
    """

    def __init__(
        self, attention: StreamingMultiheadAttention, slots: int, max_steps: int, device: torch.device
    ):
        if attention.context is None or attention.cross_attention:
            raise RuntimeError("only self-attention with a finite context can be streamed")
        self.capacity = attention.context + max_steps - 1
        heads = attention.num_heads // attention.kv_repeat
        shape = (slots, self.capacity, heads, attention.embed_dim // attention.num_heads)
        self._keys = torch.zeros(shape, device=device)
        self._values = torch.zeros(shape, device=device)
        self._index = torch.arange(self.capacity, device=device)
        self._slots = torch.arange(slots, device=device)

    def view(self, rows: Tensor | slice, offsets: Tensor) -> _Rows:
        """What moshi's attention takes for its kv_cache, on the given slots. offsets: steps done, [n]."""
        return _Rows(self, rows, offsets)

    def complete(self, rows: Tensor | slice, offsets: Tensor, k: Tensor, v: Tensor) -> KVCacheResult:
        """Write the steps of this pass, return all that can be looked at. k, v: [n, H, T, D]."""
        steps = offsets[:, None] + torch.arange(k.shape[2], device=k.device)  # [n, T]
        place = (self._slots[rows][:, None], steps % self.capacity)
        self._keys[place] = k.transpose(1, 2)
        self._values[place] = v.transpose(1, 2)
        # The latest step that lies at each index; before step 0 there is none.
        last = steps[:, -1:]
        positions = last - (last - self._index) % self.capacity  # [n, capacity]
        return KVCacheResult(
            self._keys[rows].transpose(1, 2), self._values[rows].transpose(1, 2), positions.clamp(min=-1)
        )


class _Rows:
    """A SlotKVCache bound to the rows of one pass, with the interface of moshi's RingKVCache."""

    def __init__(self, cache: SlotKVCache, rows: Tensor | slice, offsets: Tensor):
        self._cache, self._rows, self._offsets = cache, rows, offsets

    def complete(self, k: Tensor, v: Tensor, exec_mask: Tensor) -> KVCacheResult:
        return self._cache.complete(self._rows, self._offsets, k, v)
