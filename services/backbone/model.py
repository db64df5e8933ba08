"""CSM's parameters, under Sesame's own names. The one module that knows torchtune.

It holds weights and embeddings. Forward passes are in transformer.py, depth_decoder.py and
fused_llama.py, so that both runners use the same weights.

    backbone.*  decoder.*                 Llama transformers, torchtune's names
    text_embeddings.weight                [text_vocab, D]
    audio_embeddings.weight               [K * audio_vocab, D], codebook k starts at row k * audio_vocab
    projection.weight                     [d, D], backbone width to depth-decoder width
    codebook0_head.weight                 [audio_vocab, D]
    audio_head                            [K - 1, d, audio_vocab], used as h @ audio_head[k - 1]
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torchtune.models.llama3_1._position_embeddings import Llama3ScaledRoPE
from torchtune.models.llama3_2._component_builders import llama3_2
from torchtune.modules import TransformerDecoder

from models.bundle import GeneratorPart, LlamaShape


class CsmModel(nn.Module):
    """Backbone, depth decoder, embeddings and heads. Built on the meta device and filled later."""

    def __init__(self, part: GeneratorPart):
        super().__init__()
        self.part = part
        width, depth_width = part.backbone.dim, part.decoder.dim
        self.backbone = _llama(part.backbone)
        self.decoder = _llama(part.decoder)
        self.text_embeddings = nn.Embedding(part.text_vocab_size, width)
        self.audio_embeddings = nn.Embedding(part.audio_vocab_size * part.codebooks, width)
        self.projection = nn.Linear(width, depth_width, bias=False)
        self.codebook0_head = nn.Linear(width, part.audio_vocab_size, bias=False)
        self.audio_head = nn.Parameter(torch.empty(part.codebooks - 1, depth_width, part.audio_vocab_size))

    def embed_code(self, codebook: int, codes: Tensor) -> Tensor:
        """Embeddings of one codebook's codes: [B] → [B, D]."""
        return self.audio_embeddings(codes + codebook * self.part.audio_vocab_size)

    def embed_frames(self, codes: Tensor) -> Tensor:
        """The sum of the embeddings of each frame's codes: [B, K] → [B, D]."""
        return self.audio_embeddings(codes + self._offsets(codes.device)).sum(dim=1)

    def embed_tokens(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Prompt tokens: the sum of the embeddings whose mask is true.

        tokens: [T, K + 1], audio codes in columns 0 … K-1, the text id in column K.
        mask: [T, K + 1] bool.
        Returns: [T, D].
        """
        audio = self.audio_embeddings(tokens[:, :-1] + self._offsets(tokens.device))
        text = self.text_embeddings(tokens[:, -1:])
        return (torch.cat([audio, text], dim=1) * mask.unsqueeze(-1)).sum(dim=1)

    def _offsets(self, device: torch.device) -> Tensor:
        return torch.arange(self.part.codebooks, device=device) * self.part.audio_vocab_size


def build_model(part: GeneratorPart) -> CsmModel:
    """The model on the meta device: names and shapes, no storage."""
    with torch.device("meta"):
        return CsmModel(part).requires_grad_(False).eval()


def rope_table(shape: LlamaShape, device: torch.device | str) -> Tensor:
    """Rotations e^(i·position·θ) as complex64, [max_seq_len, head_dim / 2].

    Llama 3's scaled frequencies, as torchtune computes them; one seq turns the interleaved
    pair (2j, 2j + 1) of a head.
    """
    with torch.device("cpu"):
        rope = Llama3ScaledRoPE(
            dim=shape.dim // shape.heads,
            max_seq_len=shape.max_seq_len,
            base=shape.rope_base,
            scale_factor=shape.rope_scale_factor,
        )
    return torch.view_as_complex(rope.cache.contiguous()).to(device)


def init_random(model: CsmModel, seed: int) -> CsmModel:
    """Give the model fp32 CPU storage and random weights that depend on `seed` alone.

    Linear weights are N(0, 1 / fan_in), which keeps activations near 1 through the layers, so
    that logits spread over the vocabulary and generated codes vary.
    """
    model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".scale"):
                parameter.fill_(1.0)
                continue
            if "embeddings" in name:
                fan_in = model.part.codebooks  # a token sums that many
            elif name == "audio_head":
                fan_in = parameter.shape[1]
            else:
                fan_in = parameter.shape[-1]
            parameter.normal_(0.0, 1.0 / math.sqrt(fan_in), generator=generator)
    return model


def _llama(shape: LlamaShape) -> TransformerDecoder:
    """torchtune's Llama 3.2 without token embeddings and output head, which CSM does not use."""
    model = llama3_2(
        vocab_size=1,
        num_layers=shape.layers,
        num_heads=shape.heads,
        num_kv_heads=shape.kv_heads,
        embed_dim=shape.dim,
        max_seq_len=shape.max_seq_len,
        intermediate_dim=shape.intermediate_dim,
        norm_eps=shape.norm_eps,
        rope_base=shape.rope_base,
        scale_factor=shape.rope_scale_factor,
    )
    model.tok_embeddings = nn.Identity()
    model.output = nn.Identity()
    return model
