"""Allocates the blocks of the key-value cache. Pure Python: no torch, no threads; called by the scheduler.

A block holds the keys and values of BLOCK_TOKENS positions in every layer. A sequence's table lists its
blocks in order: position p is in block table[p // BLOCK_TOKENS].

A sequence takes blocks as it grows, but the right to take them, up to its request's limit, is reserved
when it is admitted. So a running sequence never waits for memory and is never preempted. For CSM-1B in
bf16 a position is 32 KiB (16 layers, k and v, 8 heads of 64): 1,024 sequences that reserve 500 positions
each take 16 GiB, with all 2,048 positions 64 GiB.

Prefix cache. Prompts that begin like an earlier sequence, its generated frames included, share its blocks.
A block's key is a hash of its tokens and of all tokens before it (prefix_keys.py), so equal keys mean equal
contents. A block is shared when all its positions are computed, and a sequence writes behind them alone: no
shared block is ever written, so there is no copy on write. What a prompt has to prefill is therefore its new
tokens and less than one block besides. Blocks without a user stay cached until they are needed for something
else; the least recently used one is evicted first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

BLOCK_TOKENS = 16


def blocks_for(tokens: int) -> int:
    """Blocks that hold `tokens` positions."""
    return -(-tokens // BLOCK_TOKENS)


@dataclass(eq=False)
class BlockTable:
    """The blocks of one sequence. It only grows while the sequence lives; the runner reads it."""

    blocks: list[int] = field(default_factory=list)
    cached_tokens: int = 0  # positions at the start whose keys and values are in the cache already
    reserved: int = 0  # blocks it may still take
    published: int = 0  # blocks at the start that others may share
    is_closed: bool = False


class BlockPool:
    """All blocks of one cache: free, in use, or idle (unused, kept for their contents)."""

    def __init__(self, blocks: int, *, prefix_cache: bool = True):
        """blocks: how many there are, numbered from 0. prefix_cache: whether sequences share blocks."""
        if blocks < 1:
            raise ValueError(f"{blocks} blocks, must be at least 1")
        self.blocks = blocks
        self.prefix_cache = prefix_cache
        self.prefix_hit_tokens = 0  # prompt tokens found in the cache, since the start
        self.prompt_tokens = 0  # tokens of all prompts admitted
        self._free = list(range(blocks))[::-1]
        self._idle: OrderedDict[int, None] = OrderedDict()  # least recently used first
        self._ref_counts = [0] * blocks
        self._block_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}
        self._reserved = 0

    @property
    def used(self) -> int:
        """Blocks that some sequence holds."""
        return self.blocks - len(self._free) - len(self._idle)

    @property
    def idle(self) -> int:
        """Blocks that no sequence holds, kept for their contents."""
        return len(self._idle)

    @property
    def reserved(self) -> int:
        """Blocks that running sequences may still take."""
        return self._reserved

    def open(self, prompt_tokens: int, tokens: int, keys: Sequence[bytes] = ()) -> BlockTable | None:
        """A table for a sequence of at most `tokens`, with the cached part of its prefix; None: not now.

        prompt_tokens: tokens of the prompt. keys: of its full blocks, in order. The last prompt token
        is never shared: its output is the first frame.
        """
        if blocks_for(tokens) > self.blocks:
            raise ValueError(f"{tokens} tokens take {blocks_for(tokens)} blocks, there are {self.blocks}")
        shared = self._find(keys, prompt_tokens)
        new = blocks_for(tokens) - len(shared)
        revived = sum(not self._ref_counts[block] for block in shared)
        if len(self._free) + len(self._idle) - self._reserved < new + revived:
            return None
        for block in shared:
            self._ref_counts[block] += 1
            self._idle.pop(block, None)
        self._reserved += new
        self.prefix_hit_tokens += len(shared) * BLOCK_TOKENS
        self.prompt_tokens += prompt_tokens
        return BlockTable(shared, len(shared) * BLOCK_TOKENS, new, len(shared))

    def share(self, table: BlockTable, keys: Sequence[bytes], prompt_tokens: int) -> None:
        """Add to a table without blocks of its own what has been cached of its prefix since."""
        found = self._find(keys, prompt_tokens)[len(table.blocks) :]
        for block in found:
            self._ref_counts[block] += 1
            self._idle.pop(block, None)
        table.reserved -= len(found)
        self._reserved -= len(found)
        table.blocks += found
        table.published = len(table.blocks)
        table.cached_tokens = table.published * BLOCK_TOKENS
        self.prefix_hit_tokens += len(found) * BLOCK_TOKENS

    def missing(self, table: BlockTable, keys: Sequence[bytes], prompt_tokens: int) -> Sequence[bytes]:
        """Keys of such a table's further blocks that others may come to share."""
        return self._shareable(keys, prompt_tokens)[len(table.blocks) :]

    def grow(self, table: BlockTable, tokens: int) -> None:
        """Give a table blocks for `tokens` positions; they were reserved for it."""
        while len(table.blocks) < blocks_for(tokens):
            if not table.reserved:
                raise ValueError(f"{tokens} tokens are more than the table was opened for")
            table.reserved -= 1
            self._reserved -= 1
            block = self._free.pop() if self._free else self._evict()
            self._ref_counts[block] = 1
            table.blocks.append(block)

    def publish(self, table: BlockTable, keys: Sequence[bytes], computed_tokens: int) -> None:
        """Let others share the full blocks. computed_tokens: positions at the start that are in the cache."""
        full = min(computed_tokens // BLOCK_TOKENS, len(keys))
        if table.is_closed or not self.prefix_cache or full <= table.published:
            return
        for block, key in zip(table.blocks[table.published : full], keys[table.published : full], strict=True):
            if key not in self._block_of:  # two computed the same tokens at once: the first one's stay
                self._block_of[key] = block
                self._key_of[block] = key
        table.published = full

    def close(self, table: BlockTable) -> None:
        """The sequence is over. Harmless when the table is closed.

        The list of blocks stays: a step in flight may still read it.
        """
        if table.is_closed:
            return
        table.is_closed = True
        self._reserved -= table.reserved
        table.reserved = 0
        for block in reversed(table.blocks):  # the start of a prefix is evicted last: the rest is useless without it
            self._ref_counts[block] -= 1
            if not self._ref_counts[block]:
                if block in self._key_of:
                    self._idle[block] = None
                else:
                    self._free.append(block)

    def _shareable(self, keys: Sequence[bytes], prompt_tokens: int) -> Sequence[bytes]:
        return keys[: (prompt_tokens - 1) // BLOCK_TOKENS] if self.prefix_cache else ()

    def _find(self, keys: Sequence[bytes], prompt_tokens: int) -> list[int]:
        found: list[int] = []
        for key in self._shareable(keys, prompt_tokens):
            block = self._block_of.get(key)
            if block is None:
                break
            found.append(block)
        return found

    def _evict(self) -> int:
        block, _ = self._idle.popitem(last=False)
        del self._block_of[self._key_of.pop(block)]
        return block
