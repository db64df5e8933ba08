"""The block pool by itself: reservations, sharing, eviction; and that no order of events loses a block."""

from __future__ import annotations

import random

import numpy as np
import pytest

from services.backbone.blocks import BLOCK_TOKENS, BlockPool, blocks_for
from services.backbone.prompt import Audio, PromptLimits, Text

R = BLOCK_TOKENS


def prefill(pool, keys, prompt_tokens, tokens=None):
    """A sequence whose prompt is prefilled."""
    table = pool.open(prompt_tokens, tokens or prompt_tokens, keys)
    pool.grow(table, prompt_tokens)
    pool.publish(table, keys, prompt_tokens)
    return table


def keys_of(text):
    """One key a letter; a key stands for all letters up to its own."""
    return tuple(text[: end + 1].encode() for end in range(len(text)))


def test_what_is_reserved_is_never_refused():
    pool = BlockPool(4)
    first = pool.open(1, 3 * R)
    assert pool.open(1, 2 * R) is None  # one block is left that is not reserved
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
    first = prefill(pool, keys_of("abc"), 3 * R + 5)
    second = prefill(pool, keys_of("abd"), 3 * R + 5)
    assert second.cached_tokens == 2 * R and second.blocks[:2] == first.blocks[:2]
    assert not set(second.blocks[2:]) & set(first.blocks)
    assert pool.used == 4 + 2
    pool.close(first)
    pool.close(second)
    assert (pool.used, pool.idle) == (0, 4)  # a, b, c and the other's d
    third = prefill(pool, keys_of("abcx"), 4 * R + 1)
    assert third.cached_tokens == 3 * R and third.blocks[:3] == first.blocks[:3]
    assert pool.prefix_hit_tokens == 5 * R and pool.prompt_tokens == 2 * (3 * R + 5) + 4 * R + 1


def test_the_last_prompt_token_is_never_shared():
    pool = BlockPool(16)
    prefill(pool, keys_of("ab"), 2 * R)  # its second block holds the last token, which a step computes
    assert prefill(pool, keys_of("ab"), 2 * R).cached_tokens == R


def test_nothing_is_shared_before_it_is_computed():
    pool = BlockPool(16)
    pool.grow(pool.open(2 * R + 1, 2 * R + 1, keys_of("ab")), 2 * R + 1)
    assert pool.open(2 * R + 1, 2 * R + 1, keys_of("ab")).cached_tokens == 0


def test_without_a_prefix_cache_nothing_is_shared_or_kept():
    pool = BlockPool(32, prefix_cache=False)
    table = prefill(pool, keys_of("abc"), 3 * R + 1)
    assert prefill(pool, keys_of("abc"), 3 * R + 1).cached_tokens == 0
    pool.close(table)
    assert pool.idle == 0


def test_blocks_that_fill_as_a_sequence_grows_are_shared():
    pool = BlockPool(32)
    table = prefill(pool, keys_of("a"), R + 3, 5 * R)
    pool.grow(table, 3 * R + 2)
    pool.publish(table, keys_of("abc"), 3 * R - 1)  # the third block lacks its last position
    assert prefill(pool, keys_of("abcd"), 4 * R + 1).blocks[:2] == table.blocks[:2]
    pool.publish(table, keys_of("abc"), 3 * R)
    later = prefill(pool, keys_of("abcz"), 4 * R + 1)
    assert later.cached_tokens == 3 * R and later.blocks[2] != table.blocks[2]  # the reader in between was first
    pool.close(table)
    assert prefill(pool, keys_of("abc"), 3 * R + 1).cached_tokens == 3 * R


def test_the_least_recently_used_blocks_are_evicted_first_and_ends_before_starts():
    pool = BlockPool(6)
    old, new = prefill(pool, keys_of("ab"), 2 * R + 1), prefill(pool, keys_of("xy"), 2 * R + 1)
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
    """Prompts are prefilled, sequences grow and publish what they generated, and end at any point."""
    chance = random.Random(5)
    pool = BlockPool(40)
    live = {}
    contents = {}  # block → key of what a sequence put there
    for event in range(10_000):
        if chance.random() < 0.5 or not live:
            text = "".join(chance.choice("ab") for _ in range(8))
            keys = keys_of(text)[: chance.randrange(6)]
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
                pool.publish(table, keys, prompt_tokens - 1)
            live[event] = (table, prompt_tokens, limit, text)
        else:
            table, prompt_tokens, limit, text = live.pop(chance.choice(list(live)))
            computed = chance.randint(prompt_tokens, limit)
            pool.grow(table, computed)
            first_new, keys = blocks_for(prompt_tokens) - 1, keys_of(text)[: computed // R]
            for index in range(first_new, len(table.blocks)):
                contents[table.blocks[index]] = keys[index] if index < len(keys) else None
            pool.publish(table, keys, computed)
            pool.close(table)
        held = {block for table, *_ in live.values() for block in table.blocks}
        assert pool.used == len(held) and len(pool._free) + pool.idle + pool.used == 40
        assert pool.reserved == sum(table.reserved for table, *_ in live.values())
        assert pool.reserved <= 40 - pool.used
    assert pool.prefix_hit_tokens > 1000
    for table, *_ in live.values():
        pool.close(table)
    assert (pool.used, pool.reserved) == (0, 0)


def test_keys_depend_on_every_token_and_mask_before_them():
    limits = PromptLimits(codebooks=4, text_vocab_size=100, codec_bins=64, max_seq_len=400)
    frames = [[code, 1, 2, 3] for code in range(40)]

    def keys(first, *rest):
        return limits.build([Text(range(1, first)), *rest, Text([7])])[0].prefix_keys().keys

    long = keys(20, Audio(frames))  # 19 + 41 + 1 tokens: three full blocks and 13 tokens
    assert len(long) == 3 and len(set(long)) == 3
    assert keys(20, Audio(frames)) == long
    assert keys(20, Audio(frames), Text([9] * 30))[:3] == long
    assert keys(21, Audio(frames))[0] == long[0] and keys(21, Audio(frames))[1] != long[1]
    other = [list(frame) for frame in frames]
    other[0][3] = 4
    changed = keys(20, Audio(other))
    assert changed[0] == long[0] and changed[1] != long[1] and changed[2] != long[2]
    # zeros that count and zeros that do not are not the same token
    silence, nothing = limits.build([Text([1] * 16), Text([1])])[0], limits.build([Text([1] * 16), Text([1])])[0]
    nothing.mask[3, :-1] = True
    assert silence.prefix_keys().keys != nothing.prefix_keys().keys
    # what a mask hides is no part of the key
    nothing.mask[3, :-1] = False
    nothing.tokens[3, :-1] = np.arange(4)
    assert silence.prefix_keys().keys == nothing.prefix_keys().keys


def test_a_generated_frame_has_the_key_of_the_same_frame_in_a_prompt():
    limits = PromptLimits(codebooks=4, text_vocab_size=100, codec_bins=64, max_seq_len=400)
    draw = np.random.default_rng(3)
    for length in range(1, 40, 3):
        parts = [Text([1, 2, 3]), Audio([[5, 6, 7, 8]] * 4), Text([9] * length)]
        frames = draw.integers(0, 64, (50, 4)).tolist()
        keys = limits.build(parts)[0].prefix_keys()
        before = keys.copy()
        for frame in frames:
            keys.append(np.array([*frame, -1], np.int32).tobytes())
        next_turn = limits.build([*parts, Audio(frames), Text([4, 4])])[0].prefix_keys().keys
        assert len(keys.keys) == (8 + length + 50) // R and keys.keys == next_turn[: len(keys.keys)]
        resumed = limits.build(parts, frames[:20])[0].prefix_keys()
        assert resumed.keys == keys.keys[: len(resumed.keys)]
        assert len(before.keys) == (8 + length) // R  # a copy goes its own way
