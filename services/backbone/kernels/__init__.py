"""What a frame does besides matrix products, as a handful of operations in two forms.

reference.py says in torch what each one computes, and runs anywhere. triton_ops.py has the same names as
Triton kernels, one launch each, for CUDA devices. Tests compare the two.
"""

from __future__ import annotations

import importlib
from types import ModuleType

import torch


def operations_for(device: torch.device) -> ModuleType:
    """The module of operations for a device. Imports Triton on CUDA alone."""
    return importlib.import_module(
        f"services.backbone.kernels.{'triton_ops' if device.type == 'cuda' else 'reference'}"
    )
