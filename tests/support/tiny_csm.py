"""Tiny CSM shapes, and a transformers model of the same shapes."""

from __future__ import annotations

from pathlib import Path

import torch

from models.bundle import GeneratorPart, LlamaShape

AUDIO_TOKEN, AUDIO_EOS_TOKEN = 90, 91  # placeholders in transformers' text; our tests never use them as text


def tiny_part(codebooks: int) -> GeneratorPart:
    """Grouped-query attention in both stacks, head sizes 16, rows enough for RoPE's scaling to matter."""
    return GeneratorPart(
        text_vocab_size=96,
        audio_vocab_size=67,
        codebooks=codebooks,
        backbone=LlamaShape(layers=3, heads=4, kv_heads=2, dim=64, intermediate_dim=160, max_seq_len=256),
        decoder=LlamaShape(layers=2, heads=2, kv_heads=1, dim=32, intermediate_dim=96, max_seq_len=codebooks + 1),
        sources=(),
        folder=Path(),
    )


def make_stock(part: GeneratorPart):
    """A random transformers model of these shapes, its RoPE as the public checkpoint states it."""
    from transformers import CsmConfig, CsmDepthDecoderConfig, CsmForConditionalGeneration, MimiConfig

    def rope(low: float, high: float, context: int) -> dict:
        return {
            "rope_type": "llama3",
            "rope_theta": 500_000.0,
            "factor": 32.0,
            "low_freq_factor": low,
            "high_freq_factor": high,
            "original_max_position_embeddings": context,
        }

    def shape(shape: LlamaShape) -> dict:
        return {
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.kv_heads,
            "hidden_size": shape.dim,
            "intermediate_size": shape.intermediate_dim,
            "max_position_embeddings": shape.max_seq_len,
        }

    config = CsmConfig(
        num_codebooks=part.codebooks,
        vocab_size=part.audio_vocab_size,
        text_vocab_size=part.text_vocab_size,
        codebook_pad_token_id=part.audio_vocab_size - 1,
        pad_token_id=0,
        bos_token_id=1,
        audio_token_id=AUDIO_TOKEN,
        audio_eos_token_id=AUDIO_EOS_TOKEN,
        initializer_range=0.2,
        rope_parameters=rope(0.125, 0.5, 1024),
        **shape(part.backbone),
        depth_decoder_config=CsmDepthDecoderConfig(
            num_codebooks=part.codebooks,
            backbone_hidden_size=part.backbone.dim,
            vocab_size=part.audio_vocab_size,
            rope_parameters=rope(0.001953125, 0.0078125, 16),
            initializer_range=0.2,
            **shape(part.decoder),
        ),
        codec_config=MimiConfig(
            hidden_size=16,
            num_filters=2,
            num_hidden_layers=1,
            num_attention_heads=1,
            num_key_value_heads=1,
            intermediate_size=16,
            codebook_size=8,
            codebook_dim=4,
            vector_quantization_hidden_dimension=4,
            num_quantizers=2,
            num_semantic_quantizers=1,
            upsampling_ratios=[2, 2],
            upsample_groups=16,
        ),
    )
    torch.manual_seed(5)
    return CsmForConditionalGeneration(config).eval()
