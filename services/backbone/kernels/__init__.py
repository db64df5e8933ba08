"""What a frame does besides matrix products, as a handful of operations in two forms.

reference.py says in torch what each one computes, and runs anywhere. triton_ops.py has the same names as
Triton kernels, one launch each, for CUDA devices. Tests compare the two.
"""

from __future__ import annotations

import importlib
from types import ModuleType

import torch

from services.backbone.kernels.wgmma import has_kernels


def operations_for(device: torch.device) -> ModuleType:
    """The module of operations for a device. Imports Triton on CUDA alone."""
    return importlib.import_module(
        f"services.backbone.kernels.{'triton_ops' if device.type == 'cuda' else 'reference'}"
    )


def can_overlap(device: torch.device) -> bool:
    """Whether a device has programmatic dependent launch, and the shared memory that the tiles of such kernels take (228 KiB
    a multiprocessor): compute capabilities 9 and 10, an H100 or B200. An A100 has no such launch, an RTX too little memory.
    """
    return device.type != "cuda" or torch.cuda.get_device_capability(device)[0] in (9, 10)


def can_defer_norms(device: torch.device) -> bool:
    """Whether a device has the products of wgmma.py, which prepare and apply norms: compute capability 9.0."""
    return device.type != "cuda" or has_kernels(device)
