"""Shapes of generators that device tests run, and prompts for them."""

from __future__ import annotations

import dataclasses

import numpy as np

from models.bundle import GeneratorPart, LlamaShape, load_bundle
from services.backbone.prompt import Audio, Prompt, PromptLimits, Text

CSM_1B = load_bundle("csm-1b").generator
# CSM-1B's widths and heads with fewer layers, and shapes as small as they get
NARROW = dataclasses.replace(
    CSM_1B,
    text_vocab_size=96,
    backbone=dataclasses.replace(CSM_1B.backbone, layers=2),
    decoder=dataclasses.replace(CSM_1B.decoder, layers=1),
)
TINY = GeneratorPart(
    text_vocab_size=96,
    audio_vocab_size=67,
    codebooks=32,
    backbone=LlamaShape(layers=2, heads=4, kv_heads=2, dim=64, intermediate_dim=160, max_seq_len=160),
    decoder=LlamaShape(layers=2, heads=2, kv_heads=1, dim=32, intermediate_dim=96, max_seq_len=33),
    sources=(),
    folder=CSM_1B.folder,
)


def limits(part: GeneratorPart) -> PromptLimits:
    return PromptLimits(part.codebooks, part.text_vocab_size, part.audio_vocab_size - 3, part.backbone.max_seq_len)


def prompt_of(part: GeneratorPart, index: int) -> Prompt:
    draw = np.random.default_rng(index)
    audio = Audio(draw.integers(0, part.audio_vocab_size - 3, (5 + 9 * index, part.codebooks)).tolist())
    return limits(part).build([Text([1, 2]), audio, Text(draw.integers(1, 96, 3 + index).tolist())])[0]
