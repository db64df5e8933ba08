"""Open weight files and fill a module with them, straight to the target device and dtype.

The module is built on the meta device; each tensor is read to `device`, cast to `dtype` and
put in place before the next is read, so no second copy of the weights ever exists.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from models.files import PartError

_REFETCH = "the file is damaged or still being copied: delete it and fetch it again"


def read_safetensors(part: str, paths: Iterable[Path], device: torch.device | str) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor on `device`) of every tensor in `paths`, one at a time.

    Raises: PartError when a file is truncated or is no safetensors file.
    """
    for path in paths:
        try:
            with safe_open(str(path), framework="pt", device=str(device)) as file:
                for name in file.keys():
                    yield name, file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise PartError(part, str(path), f"cannot be read ({error})", _REFETCH) from error


def read_pickle(part: str, path: Path, device: torch.device | str) -> dict[str, Tensor]:
    """The state dict in a torch checkpoint, without the `module.` that DataParallel leaves on names.

    Only tensors are unpickled (weights_only): a checkpoint cannot run code.
    Raises: PartError when the file is truncated or has another content.
    """
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        return {name.removeprefix("module."): tensor for name, tensor in state.items()}
    except Exception as error:  # torch raises a dozen types here; all mean the same to the caller
        raise PartError(part, str(path), f"cannot be read ({type(error).__name__}: {error})", _REFETCH) from error


def fill(
    module: nn.Module,
    tensors: Iterable[tuple[str, Tensor]],
    *,
    part: str,
    source: str,
    dtype: torch.dtype | None = None,
) -> None:
    """Put `tensors` into `module` (usually on the meta device), replacing its parameters and buffers.

    dtype: floating tensors are cast to it; None keeps each tensor's own.
    Raises: PartError naming the first tensors that are missing, unknown or of another shape.
    """
    slots = {name: tensor for name, tensor in module.state_dict(keep_vars=True).items()}
    remedy = "these weights belong to another model or layout: check the shapes in bundle.toml"
    missing = set(slots)
    for name, tensor in tensors:
        if name not in slots:
            raise PartError(part, source, f"unknown tensor {name}", remedy)
        if tensor.shape != slots[name].shape:
            raise PartError(
                part, source, f"tensor {name} is {list(tensor.shape)}, expected {list(slots[name].shape)}", remedy
            )
        if dtype is not None and tensor.is_floating_point():
            tensor = tensor.to(dtype)
        owner, _, leaf = name.rpartition(".")
        holder = module.get_submodule(owner)
        if leaf in holder._parameters:
            holder._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
        else:
            holder._buffers[leaf] = tensor
        missing.discard(name)
    if missing:
        names = ", ".join(sorted(missing)[:3]) + (" …" if len(missing) > 3 else "")
        raise PartError(part, source, f"{len(missing)} tensors missing: {names}", remedy)
