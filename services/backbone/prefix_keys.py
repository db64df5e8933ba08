"""Content keys of key-value blocks, for the prefix cache. Pure Python: no torch, no numpy.

A block's key is a hash of its tokens and of the key before it, so equal keys mean equal sequences up to
the block's end, whether a prompt brought the tokens or the model generated them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from services.backbone.blocks import BLOCK_TOKENS

UNUSED = -1  # in a column that the mask leaves out

# hashlib lets other threads run while it hashes 2,048 bytes or more. The engine's thread would wait for them up to 5 ms
# to have the lock again, for a hash of 4 us, dozens of times a step.
_PIECE_BYTES = 1024


def next_key(key: bytes, block: bytes | bytearray) -> bytes:
    """The key of a block. key: of the block before it, empty for the first. block: its tokens, int32."""
    digest = hashlib.blake2b(key, digest_size=32)
    for start in range(0, len(block), _PIECE_BYTES):
        digest.update(block[start : start + _PIECE_BYTES])
    return digest.digest()


class PrefixKeys:
    """The keys of a growing sequence's full blocks, in order."""

    def __init__(self, keys: Iterable[bytes] = (), tail: bytes | bytearray = b""):
        """keys: of the full blocks. tail: tokens of the last, partial block."""
        self.keys = list(keys)
        self._tail = bytearray(tail)

    def copy(self) -> PrefixKeys:
        return PrefixKeys(self.keys, self._tail)

    def append(self, token: bytes) -> None:
        """Extend the sequence by a token, K + 1 int32; a generated frame's text column is unused."""
        tail = self._tail
        tail += token
        if len(tail) == BLOCK_TOKENS * len(token):
            self.keys.append(next_key(self.keys[-1] if self.keys else b"", tail))
            tail.clear()
