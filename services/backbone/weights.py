"""Read and write the generator's weights in both public layouts.

`sesame` is one safetensors file and a config.json; `transformers` is sharded and names things
its own way (keymap.py). Tensors go straight to the target device and dtype, one at a time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from models.bundle import GeneratorPart, LlamaShape
from models.checkpoint import fill, read_safetensors
from models.files import PartError
from services.backbone.keymap import TIED, from_transformers
from services.backbone.model import CsmModel, build_model

_PART = "generator"
# Names that Sesame's config.json gives to shapes; max_seq_len of a depth decoder follows from the codebooks.
_FLAVORS = {
    "llama-1B": LlamaShape(16, 32, 8, 2048, 8192, 2048),
    "llama-100M": LlamaShape(4, 8, 2, 1024, 8192, 33),
}
_OTHER_FLAVOR = "custom"


def load_model(part: GeneratorPart, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> CsmModel:
    """The bundle's generator with its weights on `device` in `dtype`.

    Raises: PartError when files are missing, damaged, or of another model than the bundle says.
    """
    layout, config, paths = part.resolve()
    if layout not in ("sesame", "transformers"):
        raise PartError(_PART, str(paths[0]), f"unknown layout {layout!r}", "use sesame or transformers")
    model = build_model(part)
    tensors = read_safetensors(_PART, paths, device)
    if config is not None and layout == "sesame":
        _check_config(config, part)
    if layout == "transformers":
        tensors = _renamed(tensors, model, str(paths[0].parent))
    fill(model, tensors, part=_PART, source=" + ".join(map(str, paths)), dtype=dtype)
    return model.requires_grad_(False)


def save_sesame(model: CsmModel, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write `config.json` and `model.safetensors` as Sesame lays them out.

    dtype: what to store the weights in; None keeps the model's own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(sesame_config(model.part), indent=2) + "\n")
    state = {
        # clone: a runner may have fused weights into one storage, which safetensors refuses to write
        name: tensor.detach().to("cpu", dtype or tensor.dtype).clone(memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }
    save_file(state, folder / "model.safetensors")


def sesame_config(part: GeneratorPart) -> dict[str, Any]:
    """What Sesame's config.json says for these shapes; shapes without a flavour name are spelled out."""
    config: dict[str, Any] = {
        "audio_num_codebooks": part.codebooks,
        "audio_vocab_size": part.audio_vocab_size,
        "text_vocab_size": part.text_vocab_size,
    }
    for stack, shape in (("backbone", part.backbone), ("decoder", part.decoder)):
        flavor = next((name for name, known in _FLAVORS.items() if _size(known) == _size(shape)), _OTHER_FLAVOR)
        config[f"{stack}_flavor"] = flavor
        if flavor == _OTHER_FLAVOR:
            config[f"{stack}_shape"] = _size(shape)
    return config


def _check_config(path: Path, part: GeneratorPart) -> None:
    """Compare a Sesame config.json with the bundle, so that an error names a number, not a tensor."""
    try:
        config = json.loads(path.read_text())
        if not isinstance(config, dict):
            raise ValueError("no JSON object")
    except ValueError as error:
        raise PartError(_PART, str(path), f"not JSON ({error})", "fetch it again") from error
    for key in ("audio_num_codebooks", "audio_vocab_size", "text_vocab_size", "backbone_flavor", "decoder_flavor"):
        if key not in config:
            raise PartError(_PART, str(path), f"has no {key}", "fetch Sesame's own config.json")
    wanted = sesame_config(part)
    for key in ("audio_num_codebooks", "audio_vocab_size", "text_vocab_size"):
        if config[key] != wanted[key]:
            raise _mismatch(path, key, config[key], wanted[key])
    for stack, shape in (("backbone", part.backbone), ("decoder", part.decoder)):
        flavor = config[f"{stack}_flavor"]
        size = config.get(f"{stack}_shape") if flavor == _OTHER_FLAVOR else _size(_FLAVORS.get(flavor))
        if size is None:
            raise PartError(
                _PART, str(path), f"{stack}_flavor {flavor!r} is unknown", f"known are {', '.join(_FLAVORS)}"
            )
        if size != _size(shape):
            raise _mismatch(path, f"{stack}_flavor {flavor}", size, _size(shape))


def _mismatch(path: Path, key: str, found: Any, wanted: Any) -> PartError:
    return PartError(_PART, str(path), f"{key} is {found}, the bundle says {wanted}", "correct bundle.toml")


def _size(shape: LlamaShape | None) -> dict[str, int] | None:
    """What a flavour fixes about a transformer."""
    if shape is None:
        return None
    return {name: getattr(shape, name) for name in ("layers", "heads", "kv_heads", "dim", "intermediate_dim")}


def _renamed(tensors: Iterator[tuple[str, Tensor]], model: CsmModel, source: str) -> Iterator[tuple[str, Tensor]]:
    """Tensors of the transformers layout under Sesame's names; the codec's are left out.

    fill() puts each tensor in place before it asks for the next, so a tied tensor that comes
    second is compared with the one already in the model.
    """
    seen: set[str] = set()
    for name, tensor in tensors:
        try:
            renamed = from_transformers(name, tensor, model.part)
        except KeyError:
            raise PartError(
                _PART, source, f"unknown tensor {name}", "these files belong to another model or layout"
            ) from None
        if renamed is None:
            continue
        if renamed[0] in seen:
            placed = model.get_parameter(renamed[0])
            if placed.shape != tensor.shape or not torch.equal(placed, tensor.to(placed.dtype)):
                raise PartError(
                    _PART,
                    source,
                    f"{TIED} differs from the backbone's audio embeddings",
                    "CSM ties the two; use a checkpoint that does",
                )
            continue
        seen.add(renamed[0])
        yield renamed
