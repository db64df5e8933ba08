"""A tiny Mimi whose every part matters: random weights, layer scale 1, a context of five frames."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from moshi.models import MimiModel, loaders
from safetensors.torch import save_file
from torch import nn

from models.bundle import load_bundle
from training.noise import text_tokenizer

CODEBOOKS, BINS = 4, 32
CONFIG = {
    "sample_rate": 24_000,
    "channels": 1,
    "frame_rate": 12.5,
    "seanet": loaders._seanet_kwargs | {"dimension": 16, "n_filters": 2},
    "transformer": loaders._transformer_kwargs
    | {
        "d_model": 16,
        "num_heads": 2,
        "num_layers": 2,
        "dim_feedforward": 32,
        "layer_scale": 1.0,
        "context": 10,
        "input_dimension": 16,
        "output_dimensions": [16],
    },
    "quantizer": {
        "dimension": 8,
        "n_q": CODEBOOKS,
        "bins": BINS,
        "input_dimension": 16,
        "output_dimension": 16,
    },
}


@torch.no_grad()
def build() -> MimiModel:
    """Samples within about ±1 for any codes; codes that vary for any sound."""
    model: Any = loaders.get_mimi(None, CONFIG, num_codebooks=CODEBOOKS)
    random = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.ConvTranspose1d):
            module.weight.normal_(std=1.25 / math.sqrt(module.weight[0].numel()), generator=random)
            if module.bias is not None:
                module.bias.normal_(std=0.1, generator=random)
    model.encoder.model[0].conv.conv.weight.mul_(10)
    model.decoder.model[-1].conv.conv.weight.mul_(0.1)
    for quantizer in (model.quantizer.rvq_first, model.quantizer.rvq_rest):
        for layer in quantizer.vq.layers:
            layer._codebook.embedding_sum.normal_(generator=random)
            layer._codebook._initialized.fill_(1)
    return model.requires_grad_(False)


def write_bundle(folder: Path) -> Path:
    """A bundle folder whose tokenizer and Mimi are there, and whose other parts are only named."""
    (folder / "mimi.json").write_text(json.dumps(CONFIG))
    save_file(build().state_dict(), folder / "mimi.safetensors")
    shape = "layers = 1\nheads = 2\nkv_heads = 2\ndim = 16\nintermediate_dim = 32"
    (folder / "bundle.toml").write_text(f"""
id = "tiny"
description = "for tests"
trained = false
sample_rate_hz = 24000
frame_rate_hz = 12.5
codebooks = {CODEBOOKS}
[generator]
text_vocab_size = 512
audio_vocab_size = {BINS + 3}
source = [{{ layout = "sesame", weights = ["none"] }}]
[generator.backbone]
{shape}
max_seq_len = 64
[generator.decoder]
{shape}
max_seq_len = {CODEBOOKS + 1}
[text_tokenizer]
source = [{{ tokenizer = "tokenizer.json" }}]
[mimi]
source = [{{ config = "mimi.json", weights = "mimi.safetensors" }}]
[watermark]
source = [{{ hparams = "none" }}]
""")
    text_tokenizer.make(load_bundle(str(folder)), folder / "tokenizer.json")
    return folder
