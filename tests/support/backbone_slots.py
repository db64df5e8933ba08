"""A runner without a scheduler: each slot has a stretch of the cache's blocks to itself."""

from __future__ import annotations

from services.backbone.blocks import BlockTable, blocks_for


def own_table(runner, slot: int) -> BlockTable:
    """Blocks for all positions that the model has, shared with no other slot."""
    each = blocks_for(runner.max_seq_len)
    return BlockTable(list(range(slot * each, (slot + 1) * each)))


def open_slot(runner, slot: int, prompt, sampling) -> None:
    """Put a prompt into a slot and read it."""
    runner.begin(slot, prompt, sampling, own_table(runner, slot))
    read_prompt(runner, slot)


def read_prompt(runner, slot: int) -> None:
    while not runner.prefill([slot]):
        pass
