"""Random weights for a small Mimi that makes bounded, audible noise, and whose encoder tells sounds apart."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from moshi.models import MimiModel, loaders
from safetensors.torch import save_file
from torch import Tensor, nn

from models.bundle import Bundle

# Small versions of the numbers in moshi's loaders; everything else is as there.
_DIM = 192
_FILTERS = 24
_LAYERS, _HEADS, _HIDDEN = 2, 6, 768
_CODE_DIM = 128
_LOUDNESS = 0.08  # RMS of random frames, full scale 1
_PEAK = 0.7


def config(bundle: Bundle) -> dict[str, Any]:
    """What moshi calls a mimi_config, at small sizes."""
    return {
        "sample_rate": bundle.sample_rate_hz,
        "channels": 1,
        "frame_rate": bundle.frame_rate_hz,
        "seanet": loaders._seanet_kwargs | {"dimension": _DIM, "n_filters": _FILTERS},
        "transformer": loaders._transformer_kwargs
        | {
            "d_model": _DIM,
            "num_heads": _HEADS,
            "num_layers": _LAYERS,
            "dim_feedforward": _HIDDEN,
            "layer_scale": 0.1,
            "input_dimension": _DIM,
            "output_dimensions": [_DIM],
        },
        "quantizer": {
            "dimension": _CODE_DIM,
            "n_q": bundle.codebooks,
            "bins": bundle.codec_bins,
            "input_dimension": _DIM,
            "output_dimension": _DIM,
        },
    }


@torch.inference_mode()
def make(bundle: Bundle, folder: Path, seed: int) -> None:
    """Write config.json and model.safetensors, in moshi's own layout, into `folder`."""
    model = loaders.get_mimi(None, config(bundle), num_codebooks=bundle.codebooks)
    random = torch.Generator().manual_seed(seed)
    _draw(model, random)
    _spread_codebooks(model, random)
    _level(model, random)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config(bundle), indent=2) + "\n")
    save_file(model.state_dict(), folder / "model.safetensors")


def _draw(model: MimiModel, random: torch.Generator) -> None:
    """Weights of std 1.25 / √fan_in and zero biases: with torch's defaults the latents die on the way."""
    for module in model.modules():
        if not isinstance(module, nn.Linear | nn.Conv1d | nn.ConvTranspose1d):
            continue
        fan_in = module.weight[0].numel()  # [out, in, kernel] of Conv1d and Linear
        if isinstance(module, nn.ConvTranspose1d):  # [in, out, kernel]: a sample hears kernel / stride inputs
            fan_in = module.in_channels // module.groups * module.kernel_size[0] // module.stride[0]
        module.weight.normal_(std=1.25 / math.sqrt(fan_in), generator=random)
        if module.bias is not None:
            module.bias.zero_()
    model.encoder.model[0].conv.conv.weight.mul_(10)  # samples are small numbers


def _spread_codebooks(model: MimiModel, random: torch.Generator) -> None:
    """Centroids where the latents of a varied sound lie, so that the encoder uses many of them."""
    latents = model._encode_to_unquantized_latent(_sound(random, model.sample_rate))
    for quantizer in (model.quantizer.rvq_first, model.quantizer.rvq_rest):
        residual = quantizer.input_proj(latents)[0].T  # [T, _CODE_DIM]
        for layer in quantizer.vq.layers:
            codebook = layer._codebook
            drawn = torch.randn(codebook.embedding_sum.shape, generator=random)
            codebook.embedding_sum.copy_(residual.mean(0) + 0.5 * residual.std(0) * drawn)
            codebook.cluster_usage.fill_(1)
            codebook._initialized.fill_(1)
            codebook._embedding = None
            residual = residual - codebook.decode(codebook.encode(residual))


def _level(model: MimiModel, random: torch.Generator) -> None:
    """Scale and centre the last convolution, so that random frames are heard and do not clip."""
    last = model.decoder.model[-1].conv.conv
    codes = torch.randint(model.cardinality, (1, model.num_codebooks, 100), generator=random)
    audio = model.decode(codes)
    mean = audio.mean()
    scale = min(_LOUDNESS / (audio - mean).square().mean().sqrt(), _PEAK / (audio - mean).abs().max())
    last.weight.mul_(scale)
    last.bias.copy_(-mean * scale)


def _sound(random: torch.Generator, rate_hz: int, seconds: int = 20) -> Tensor:
    """Tones that glide under noise whose loudness wanders. [1, 1, seconds * rate_hz]"""
    size = seconds * rate_hz
    slow = torch.rand(1, 3, 8 * seconds, generator=random)
    pitch, loud, hiss = nn.functional.interpolate(slow, size=size, mode="linear")[0]
    tone = torch.sin(2 * math.pi * torch.cumsum(80 * 2 ** (4 * pitch) / rate_hz, 0))
    noise = torch.randn(size, generator=random)
    return (0.3 * loud * tone + 0.1 * hiss**2 * noise).view(1, 1, -1)
