"""What others do, timed: Sesame's loop over torchtune modules, and transformers with a static cache.

Both return milliseconds a frame at about `context` rows. Weights are random: no stream ends early, and
the time does not depend on them.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from models.bundle import GeneratorPart
from services.backbone.model import CsmModel


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def random_model(part: GeneratorPart, device: torch.device, dtype: torch.dtype) -> CsmModel:
    """Weights made on the device; with torchtune's own RoPE tables, which init_random leaves out."""
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = CsmModel(part).requires_grad_(False).eval()
    finally:
        torch.set_default_dtype(previous)
    generator = torch.Generator(device).manual_seed(1)
    for name, parameter in model.named_parameters():
        if name.endswith(".scale"):
            parameter.fill_(1.0)
        else:
            fan_in = part.codebooks if "embeddings" in name else parameter.shape[1]
            parameter.normal_(0.0, fan_in**-0.5, generator=generator)
    return model


def _draw(logits: Tensor, top_k: int = 50, temperature: float = 0.9) -> Tensor:
    """Top-k sampling without a host sync, as Sesame does it: [1, V] → [1, 1]."""
    logits = logits / temperature
    kept = logits.masked_fill(logits < torch.topk(logits, min(top_k, logits.shape[-1]))[0][..., -1:], float("-inf"))
    shares = torch.softmax(torch.log_softmax(kept, dim=-1), dim=-1)
    return torch.argmax(shares / torch.empty_like(shares).exponential_(1), dim=-1, keepdim=True)


@torch.inference_mode()
def sesame_loop(
    part: GeneratorPart, device: torch.device, dtype: torch.dtype, *, compiled: bool, context: int, frames: int
) -> list[float]:
    """The loop of Sesame's generate_frame: torchtune's modules and caches, batch 1, one call a codebook."""
    model = random_model(part, device, dtype)
    with torch.device(device):
        model.backbone.setup_caches(1, dtype)
        model.decoder.setup_caches(1, dtype, decoder_max_seq_len=part.codebooks)
        backbone_mask = torch.tril(torch.ones(part.backbone.max_seq_len, part.backbone.max_seq_len, dtype=torch.bool))
        decoder_mask = torch.tril(torch.ones(part.codebooks, part.codebooks, dtype=torch.bool))
    backbone: Callable[..., Tensor] = model.backbone
    decoder: Callable[..., Tensor] = model.decoder
    if compiled:
        backbone = torch.compile(model.backbone, mode="reduce-overhead")
        decoder = torch.compile(model.decoder, mode="reduce-overhead")

    def frame(rows: Tensor, positions: Tensor) -> Tensor:
        """rows: [1, T, D] → codes [1, K]."""
        hidden = backbone(rows, input_pos=positions, mask=backbone_mask[positions])[:, -1].to(dtype, copy=True)
        code = _draw(model.codebook0_head(hidden))
        codes = [code]
        row = torch.cat([hidden.unsqueeze(1), model.embed_code(0, code)], dim=1)
        at = torch.arange(2, device=device).unsqueeze(0)
        model.decoder.reset_caches()
        for codebook in range(1, part.codebooks):
            out = decoder(model.projection(row), input_pos=at, mask=decoder_mask[at]).to(dtype, copy=True)
            code = _draw(out[:, -1] @ model.audio_head[codebook - 1])
            codes.append(code)
            row, at = model.embed_code(codebook, code), at[:, -1:] + 1
        return torch.cat(codes, dim=1)

    start = context - frames // 2
    rows = torch.randn(1, start, part.backbone.dim, device=device, dtype=dtype)
    positions = torch.arange(start, device=device).unsqueeze(0)
    times = []
    for _ in range(frames + (20 if compiled else 3)):
        synchronize(device)
        began = time.perf_counter()
        codes = frame(rows, positions)
        ended = not codes.any().item()  # as the loop does, each frame
        times.append((time.perf_counter() - began) * 1e3)
        assert not ended
        rows, positions = model.embed_frames(codes).unsqueeze(1), positions[:, -1:] + 1
    return times[-frames:]


@torch.inference_mode()
def transformers_generate(
    device: torch.device, dtype: torch.dtype, *, batch: int, context: int, frames: int, tiny: bool = False
) -> list[float]:
    """CsmForConditionalGeneration.generate with static caches; it compiles by itself on a GPU."""
    from transformers import CsmConfig, CsmForConditionalGeneration, MimiConfig

    codec = MimiConfig(
        hidden_size=16, num_filters=2, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1,
        intermediate_size=16, codebook_size=8, codebook_dim=4, vector_quantization_hidden_dimension=4,
        num_quantizers=2, num_semantic_quantizers=1, upsampling_ratios=[2, 2], upsample_groups=16,
    )  # fmt: skip
    small = {"num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2,
             "num_key_value_heads": 1, "head_dim": 32}  # fmt: skip
    config = CsmConfig(
        codec_config=codec,
        **({**small, "depth_decoder_config": {**small, "backbone_hidden_size": 64}} if tiny else {}),
    )
    with torch.device(device):
        model = CsmForConditionalGeneration(config).to(dtype).eval()
    model.generation_config.cache_implementation = "static"
    model.depth_decoder.generation_config.cache_implementation = "static"
    model.generation_config.pad_token_id = config.pad_token_id
    start = context - frames // 2
    ids = torch.randint(10, 1000, (batch, start), device=device)
    marks: list[float] = []
    decode_frame = model.depth_decoder.generate  # called once a frame

    def marked(*args: Any, **options: Any) -> Any:
        synchronize(device)
        marks.append(time.perf_counter())
        return decode_frame(*args, **options)

    model.depth_decoder.generate = marked
    for _ in range(3):  # the first compiles, the second captures
        marks.clear()
        model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=frames + 3, do_sample=True,
            depth_decoder_do_sample=True,
        )  # fmt: skip
    return [(after - before) * 1e3 for before, after in itertools.pairwise(marks)][2:]
