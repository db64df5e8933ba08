"""CUDA C++ kernel of draws, in which one warp does a row's work: compiles row_cuda/, calls it.

Only bf16, the bins and the width of CSM-1B, and GPUs of compute capability 9.0; sampling.py has a Triton kernel for the rest.
reference.sample says what both compute.

Noise is made for the tokens that top-k leaves, and the k-th greatest logit is found by bisection between good bounds, in
registers: where a block of 8 warps a row took 27 us for 1,024 rows, of which noise for all 2,048 tokens alone is 4, this takes 7.5.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from services.backbone.kernels.nvrtc import Kernel, compile_cuda, compiles_for, options_for

ARCHITECTURE = "sm_90a"
BINS, WIDTH = 2048, 1024
_WARPS = 1  # rows, of a block
_PARTS = ("types", "ptx", "draw")


class _Arguments(ctypes.Structure):
    _names = ("logits", "temperature", "top_k", "seeds", "frames", "codes", "embeddings", "inputs")
    _numbers = ("rows", "codebook", "codebooks")
    _fields_ = [*((name, ctypes.c_void_p) for name in _names), *((name, ctypes.c_int) for name in _numbers)]


@cache
def source() -> str:
    """CUDA C++."""
    return "\n".join((Path(__file__).with_name("row_cuda") / f"{name}.cu").read_text() for name in _PARTS)


def compiler_options() -> list[str]:
    values = {"BINS": BINS, "WIDTH": WIDTH, "WARPS": _WARPS, "SHARED": _shared_bytes()}
    return options_for(ARCHITECTURE, values)


def _shared_bytes() -> int:
    return _WARPS * BINS * 2  # a list of tokens, 16 bits each, a row


@cache
def _kernel(device: torch.device) -> Kernel:
    cubin = compile_cuda(source(), "row_cuda", compiler_options())
    return Kernel(cubin, "draw", shared_bytes=_shared_bytes())


@cache
def _has_kernels(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_properties(device).major == 9 and compiles_for(ARCHITECTURE)


def can_draw(logits: Tensor, embeddings: Tensor | None, rows: Tensor | None) -> bool:
    """Whether draw() takes these arguments of reference.sample."""
    return (
        logits.dtype == torch.bfloat16
        and logits.shape[1] == BINS
        and (rows is None or rows.dtype == torch.float32)
        and (embeddings is None or (embeddings.dtype == torch.bfloat16 and embeddings.shape[2] == WIDTH))
        and _has_kernels(logits.device)
    )


def draw(
    logits: Tensor, temperature: Tensor, top_k: Tensor, seeds: Tensor, frames: Tensor, codebook: int, codes: Tensor,
    embeddings: Tensor | None = None, rows: Tensor | None = None, overlap: bool = False,
) -> None:  # fmt: skip
    """reference.sample. Raises: CompileError at its first use."""
    tensors = [logits, temperature, top_k, seeds, frames, codes]
    if embeddings is not None and rows is not None:
        tensors += [embeddings[codebook], rows]
    assert all(tensor.is_contiguous() for tensor in tensors)
    pointers = dict(zip(_Arguments._names, (tensor.data_ptr() for tensor in tensors), strict=False))
    arguments = _Arguments(**pointers, rows=len(logits), codebook=codebook, codebooks=codes.shape[1])
    _kernel(logits.device).launch(-(-len(logits) // _WARPS), 32 * _WARPS, arguments, overlap=overlap)
