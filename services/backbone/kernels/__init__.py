"""What a frame does besides matrix products, as a handful of operations in two forms.

plain.py says in torch what each one computes, and runs anywhere; fused.py holds the same names as
Triton kernels, one launch each, for CUDA devices. Tests hold the one against the other.
"""

from __future__ import annotations

import importlib
from types import ModuleType

import torch


def operations_for(device: torch.device) -> ModuleType:
    """The module of operations for a device. Triton is asked for on CUDA alone."""
    return importlib.import_module(f"services.backbone.kernels.{'fused' if device.type == 'cuda' else 'plain'}")
