"""Sesame's tensors under the names and in the layout of transformers: keymap.py the other way, to make checkpoints."""

from __future__ import annotations

from torch import Tensor

from models.bundle import GeneratorPart
from services.backbone.keymap import IN_LAYER, STACKS, WHOLE, permute, rope_heads, split_name


def to_transformers(name: str, tensor: Tensor, part: GeneratorPart) -> tuple[str, Tensor]:
    """Sesame's tensor as transformers names and lays it out. Raises: KeyError on an unknown name."""
    if name in WHOLE:
        return WHOLE[name], tensor
    stack, index, leaf = split_name(name)
    return (
        f"{STACKS[stack]}.layers.{index}.{IN_LAYER[leaf]}",
        permute(tensor, rope_heads(part, stack, leaf), to_halves=True),
    )
