"""Load moshi's Mimi for the two stages that use it: the tokenizer encodes, the codec decodes."""

from __future__ import annotations

import json

import torch
from moshi.models import MimiModel, loaders

from models.bundle import Bundle
from models.checkpoint import fill, read_safetensors
from models.files import PartError


def load_mimi(bundle: Bundle, device: torch.device | str = "cpu") -> MimiModel:
    """Mimi in eval mode, fp32, with the bundle's number of codebooks switched on (moshi's default is 8).

    Raises: PartError when files are missing, damaged, or of another shape than the bundle says.
    """
    files = bundle.mimi.resolve()
    config = None
    if "config" in files:
        try:
            config = json.loads(files["config"].read_text())
        except ValueError as error:
            raise PartError("mimi", str(files["config"]), f"not JSON ({error})", "fetch it again") from error
    try:
        model = loaders.get_mimi(None, config, device=device, num_codebooks=bundle.codebooks)
    except (KeyError, TypeError, AssertionError) as error:
        raise PartError("mimi", str(files.get("config")), f"unusable ({error!r})", "correct it") from error
    fill(
        model,
        read_safetensors("mimi", [files["weights"]], device),
        part="mimi",
        source=str(files["weights"]),
        dtype=torch.float32,
    )
    if (model.sample_rate, model.frame_rate) != (bundle.sample_rate_hz, bundle.frame_rate_hz):
        raise PartError(
            "mimi", str(files["weights"]),
            f"runs at {model.sample_rate} Hz and {model.frame_rate} frames/s", "correct bundle.toml",
        )
    return model
