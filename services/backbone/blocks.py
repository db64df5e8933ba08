"""Who owns which block of the key-value cache. Pure Python: no torch, no threads; the scheduler's business.

A block is BLOCK_ROWS rows of every layer's keys and values. A stream's table lists its blocks in
order: row r lies in block table[r // BLOCK_ROWS].

Blocks are taken as a stream grows, but the right to take them, up to the request's own limit, is
reserved when it is admitted. So a running stream never waits for memory and none has to be
thrown out to let another go on. For CSM-1B in bf16 a row is 32 KiB (16 layers, k and v, 8 heads
of 64): 1,024 streams that reserve 500 rows each take 16 GiB, all 2,048 rows each 64 GiB.

Sharing. Prompts that begin with the same rows share the blocks that hold them. A block's key is
a hash of its rows and of all rows before it (prompt.py), so equal keys mean equal contents. Only
blocks whose every row is a prompt row are shared, and a stream writes behind its prompt alone: no
shared block is ever written, which is why none has to be copied. Blocks that nobody uses any more
stay, while there is no better use for them, for the next request with the same beginning; the one
that was left longest ago goes first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

BLOCK_ROWS = 16


def blocks_for(rows: int) -> int:
    """Blocks that hold so many rows."""
    return -(-rows // BLOCK_ROWS)


@dataclass(eq=False)
class Table:
    """The blocks of one stream. Only ever longer while it lives; the runner reads it."""

    blocks: list[int] = field(default_factory=list)
    cached_rows: int = 0  # rows at the start whose keys and values are there already
    promised: int = 0  # blocks it may still take
    is_closed: bool = False


class BlockPool:
    """All blocks of one cache: free, in use, or idle (unused, but worth keeping for their contents)."""

    def __init__(self, blocks: int, *, share_rows: int = BLOCK_ROWS):
        """
        blocks: how many there are, numbered from 0.
        share_rows: what is shared is a multiple of so many rows, itself a multiple of BLOCK_ROWS;
            0 shares nothing. A runner whose results depend on how a prompt is cut into pieces
            wants the length of a piece, so that sharing changes no bit.
        """
        if blocks < 1:
            raise ValueError(f"{blocks} blocks, must be at least 1")
        if share_rows % BLOCK_ROWS:
            raise ValueError(f"share_rows is {share_rows}, must be a multiple of {BLOCK_ROWS}")
        self.blocks = blocks
        self.hit_rows = 0  # prompt rows that came from blocks already there, since the start
        self.asked_rows = 0  # rows of all prompts admitted
        self._share_blocks = share_rows // BLOCK_ROWS
        self._free = list(range(blocks))[::-1]
        self._idle: OrderedDict[int, None] = OrderedDict()  # left longest ago first
        self._users = [0] * blocks
        self._block_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}
        self._promised = 0

    @property
    def used(self) -> int:
        """Blocks that some stream holds."""
        return self.blocks - len(self._free) - len(self._idle)

    @property
    def idle(self) -> int:
        """Blocks that no stream holds, kept for their contents."""
        return len(self._idle)

    @property
    def promised(self) -> int:
        """Blocks that running streams may still take."""
        return self._promised

    def open(self, prompt_rows: int, rows: int, keys: Sequence[bytes] = ()) -> Table | None:
        """A table for a stream of at most `rows` rows, with what is known of its beginning; None: not now.

        prompt_rows: rows it begins with. keys: of the prompt's blocks, in order. The last prompt row
        is never shared: reading it gives the first frame.
        """
        if blocks_for(rows) > self.blocks:
            raise ValueError(f"{rows} rows take {blocks_for(rows)} blocks, there are {self.blocks}")
        shared = self._find(keys, prompt_rows)
        new = blocks_for(rows) - len(shared)
        revived = sum(not self._users[block] for block in shared)
        if len(self._free) + len(self._idle) - self._promised < new + revived:
            return None
        for block in shared:
            self._users[block] += 1
            self._idle.pop(block, None)
        self._promised += new
        self.hit_rows += len(shared) * BLOCK_ROWS
        self.asked_rows += prompt_rows
        return Table(shared, len(shared) * BLOCK_ROWS, new)

    def share(self, table: Table, keys: Sequence[bytes], prompt_rows: int) -> None:
        """Give a table that has taken no block of its own what has become known of its beginning since."""
        found = self._find(keys, prompt_rows)[len(table.blocks) :]
        for block in found:
            self._users[block] += 1
            self._idle.pop(block, None)
        table.promised -= len(found)
        self._promised -= len(found)
        table.blocks += found
        table.cached_rows = len(table.blocks) * BLOCK_ROWS
        self.hit_rows += len(found) * BLOCK_ROWS

    def missing(self, table: Table, keys: Sequence[bytes], prompt_rows: int) -> Sequence[bytes]:
        """Keys of such a table's further blocks that others may come to share."""
        return self._shareable(keys, prompt_rows)[len(table.blocks) :]

    def grow(self, table: Table, rows: int) -> None:
        """Give a table the blocks that it lacks for so many rows; they were promised to it."""
        while len(table.blocks) < blocks_for(rows):
            if not table.promised:
                raise ValueError(f"{rows} rows are more than the table was opened for")
            table.promised -= 1
            self._promised -= 1
            block = self._free.pop() if self._free else self._evict()
            self._users[block] = 1
            table.blocks.append(block)

    def publish(self, table: Table, keys: Sequence[bytes], prompt_rows: int) -> None:
        """The prompt's rows are in the table's blocks: others may use the full ones."""
        if table.is_closed:
            return
        for block, key in zip(table.blocks, self._shareable(keys, prompt_rows), strict=False):
            if key not in self._block_of:  # else two read the same rows at once; the first one's are known
                self._block_of[key] = block
                self._key_of[block] = key

    def close(self, table: Table) -> None:
        """The stream is over. Harmless when the table is closed.

        The list stays as it is: a step under way may still read it.
        """
        if table.is_closed:
            return
        table.is_closed = True
        self._promised -= table.promised
        table.promised = 0
        for block in reversed(table.blocks):  # the beginning goes last: without it the rest is of no use
            self._users[block] -= 1
            if not self._users[block]:
                if block in self._key_of:
                    self._idle[block] = None
                else:
                    self._free.append(block)

    def _shareable(self, keys: Sequence[bytes], prompt_rows: int) -> Sequence[bytes]:
        if not self._share_blocks:
            return ()
        full = min((prompt_rows - 1) // BLOCK_ROWS, len(keys))
        return keys[: full // self._share_blocks * self._share_blocks]

    def _find(self, keys: Sequence[bytes], prompt_rows: int) -> list[int]:
        found: list[int] = []
        for key in self._shareable(keys, prompt_rows):
            block = self._block_of.get(key)
            if block is None:
                break
            found.append(block)
        return found[: len(found) // self._share_blocks * self._share_blocks] if found else found

    def _evict(self) -> int:
        block, _ = self._idle.popitem(last=False)
        del self._block_of[self._key_of.pop(block)]
        return block
