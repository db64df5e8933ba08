"""Content keys of key-value blocks, for the prefix cache. Pure Python: no torch, no numpy.

A block's key is a hash of its tokens and of the key before it, so equal keys mean equal sequences up to
the block's end, whether a prompt brought the tokens or the model generated them.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable, Sequence
from functools import cache

from services.backbone.blocks import BLOCK_TOKENS

UNUSED = -1  # in a column that the mask leaves out


@cache
def _packer(count: int) -> Callable[..., bytes]:
    return struct.Struct(f"{count}i").pack


def next_key(key: bytes, block: bytes | bytearray) -> bytes:
    """The key of a block. key: of the block before it, empty for the first. block: its tokens, int32."""
    return hashlib.blake2b(key + block, digest_size=32).digest()


class PrefixKeys:
    """The keys of a growing sequence's full blocks, in order."""

    def __init__(self, keys: Iterable[bytes] = (), tail: bytes | bytearray = b""):
        """keys: of the full blocks. tail: tokens of the last, partial block."""
        self.keys = list(keys)
        self._tail = bytearray(tail)

    def copy(self) -> PrefixKeys:
        return PrefixKeys(self.keys, self._tail)

    def append_frame(self, codes: Sequence[int]) -> None:
        """Extend the sequence by a generated frame: K codes, the text column is unused."""
        token = _packer(len(codes) + 1)(*codes, UNUSED)
        self._tail += token
        if len(self._tail) == BLOCK_TOKENS * len(token):
            self.keys.append(next_key(self.keys[-1] if self.keys else b"", self._tail))
            self._tail.clear()
