"""The block pool by itself: promises, sharing, eviction; and that no order of events loses a block."""

from __future__ import annotations

import random

import numpy as np
import pytest

from services.backbone.blocks import BLOCK_TOKENS, BlockPool, blocks_for
from services.backbone.prompt import Audio, PromptLimits, Text

R = BLOCK_TOKENS


def read(pool, keys, prompt_tokens, rows=None):
    """A stream whose prompt has been read."""
    table = pool.open(prompt_tokens, rows or prompt_tokens, keys)
    pool.grow(table, prompt_tokens)
    pool.publish(table, keys, prompt_tokens)
    return table


def keys_of(text):
    """One key a letter; a key stands for all letters up to its own."""
    return tuple(text[: end + 1].encode() for end in range(len(text)))


def test_what_is_promised_is_never_refused():
    pool = BlockPool(4)
    first = pool.open(1, 3 * R)
    assert pool.open(1, 2 * R) is None  # one block is left that nobody was reserved
    second = pool.open(1, R)
    pool.grow(first, 3 * R)
    pool.grow(second, R)
    assert sorted(first.blocks + second.blocks) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="more than the table was opened for"):
        pool.grow(second, R + 1)
    pool.close(first)
    pool.close(first)  # twice does no harm
    assert pool.used == 1 and pool.open(1, 3 * R) is not None


def test_a_request_that_no_pool_state_could_serve_is_an_error():
    with pytest.raises(ValueError, match="65 tokens take 5 blocks, there are 4"):
        BlockPool(4).open(1, 4 * R + 1)


def test_equal_beginnings_share_blocks_while_and_after_they_run():
    pool = BlockPool(16)
    first = read(pool, keys_of("abc"), 3 * R + 5)
    second = read(pool, keys_of("abd"), 3 * R + 5)
    assert second.cached_tokens == 2 * R and second.blocks[:2] == first.blocks[:2]
    assert not set(second.blocks[2:]) & set(first.blocks)
    assert pool.used == 4 + 2
    pool.close(first)
    pool.close(second)
    assert (pool.used, pool.idle) == (0, 4)  # a, b, c and the other's d
    third = read(pool, keys_of("abcx"), 4 * R + 1)
    assert third.cached_tokens == 3 * R and third.blocks[:3] == first.blocks[:3]
    assert pool.prefix_hit_tokens == 5 * R and pool.prompt_tokens == 2 * (3 * R + 5) + 4 * R + 1


def test_the_last_row_is_never_shared():
    pool = BlockPool(16)
    read(pool, keys_of("ab"), 2 * R)  # its second block holds the last row, which a step reads
    assert read(pool, keys_of("ab"), 2 * R).cached_tokens == R


def test_nothing_is_shared_before_it_has_been_read():
    pool = BlockPool(16)
    pool.grow(pool.open(2 * R + 1, 2 * R + 1, keys_of("ab")), 2 * R + 1)
    assert pool.open(2 * R + 1, 2 * R + 1, keys_of("ab")).cached_tokens == 0


def test_sharing_in_larger_pieces_and_none():
    pool = BlockPool(32, share_tokens=2 * R)
    read(pool, keys_of("abcdef"), 5 * R + 1)  # five full blocks, two pieces
    assert read(pool, keys_of("abcdef"), 6 * R + 1).cached_tokens == 4 * R
    assert read(pool, keys_of("abcxyz"), 6 * R + 1).cached_tokens == 2 * R
    pool = BlockPool(32, share_tokens=0)
    read(pool, keys_of("abc"), 3 * R + 1)
    assert read(pool, keys_of("abc"), 3 * R + 1).cached_tokens == 0
    with pytest.raises(ValueError, match="share_tokens is 24, must be a multiple of 16"):
        BlockPool(4, share_tokens=24)


def test_the_blocks_left_longest_ago_go_first_and_ends_before_beginnings():
    pool = BlockPool(6)
    old, new = read(pool, keys_of("ab"), 2 * R + 1), read(pool, keys_of("xy"), 2 * R + 1)
    pool.close(old)
    pool.close(new)
    assert (pool.used, pool.idle) == (0, 4)
    taken = pool.open(1, 3 * R)
    pool.grow(taken, 3 * R)  # two blocks were free; the third is b's
    assert pool.open(2 * R + 1, 2 * R + 1, keys_of("xy")).cached_tokens == 2 * R
    assert pool.open(2 * R + 1, 2 * R + 1, keys_of("ab")) is None  # a is there, two more are not
    pool.close(taken)
    assert pool.open(2 * R + 1, 2 * R + 1, keys_of("ab")).cached_tokens == R


def test_ten_thousand_events_lose_no_block():
    chance = random.Random(5)
    pool = BlockPool(40, share_tokens=R)
    live = {}
    contents = {}  # block → key that was last put there by a reader
    for event in range(10_000):
        if chance.random() < 0.5 or not live:
            keys = keys_of("".join(chance.choice("ab") for _ in range(chance.randrange(6))))
            prompt_tokens = len(keys) * R + chance.randrange(1, R)
            limit = prompt_tokens + chance.randrange(60)
            table = pool.open(prompt_tokens, limit, keys)
            if table is None:
                continue
            shared = table.cached_tokens // R
            assert [contents[block] for block in table.blocks] == list(keys[:shared])
            pool.grow(table, prompt_tokens)
            contents.update(zip(table.blocks[shared:], [*keys[shared:], None], strict=True))
            if chance.random() < 0.8:
                pool.publish(table, keys, prompt_tokens)
            live[event] = (table, prompt_tokens, limit)
        else:
            table, prompt_tokens, limit = live.pop(chance.choice(list(live)))
            pool.grow(table, chance.randint(prompt_tokens, limit))
            contents.update((block, None) for block in table.blocks[blocks_for(prompt_tokens) :])
            pool.close(table)
        held = {block for table, *_ in live.values() for block in table.blocks}
        assert pool.used == len(held) and len(pool._free) + pool.idle + pool.used == 40
        assert pool.reserved == sum(table.reserved for table, *_ in live.values())
        assert pool.reserved <= 40 - pool.used
    assert pool.prefix_hit_tokens > 1000
    for table, *_ in live.values():
        pool.close(table)
    assert (pool.used, pool.reserved) == (0, 0)


def test_keys_depend_on_every_row_and_mask_before_them():
    limits = PromptLimits(codebooks=4, text_vocab_size=100, codec_bins=64, max_seq_len=400)
    frames = [[row, 1, 2, 3] for row in range(40)]

    def keys(first, *rest):
        return limits.build([Text(range(1, first)), *rest, Text([7])])[0].block_keys()

    long = keys(20, Audio(frames))  # 19 + 41 + 1 rows: three full blocks and 13 rows
    assert len(long) == 3 and len(set(long)) == 3
    assert keys(20, Audio(frames)) == long
    assert keys(20, Audio(frames), Text([9] * 30))[:3] == long
    assert keys(21, Audio(frames))[0] == long[0] and keys(21, Audio(frames))[1] != long[1]
    other = [list(frame) for frame in frames]
    other[0][3] = 4
    changed = keys(20, Audio(other))
    assert changed[0] == long[0] and changed[1] != long[1] and changed[2] != long[2]
    # zeros that count and zeros that do not are not the same row
    silence, nothing = limits.build([Text([1] * 16), Text([1])])[0], limits.build([Text([1] * 16), Text([1])])[0]
    nothing.mask[3, :-1] = True
    assert silence.block_keys() != nothing.block_keys()
    # what a mask hides is no part of the key
    nothing.mask[3, :-1] = False
    nothing.tokens[3, :-1] = np.arange(4)
    assert silence.block_keys() == nothing.block_keys()
