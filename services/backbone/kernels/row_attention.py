"""CUDA C++ kernel of a decode step's attention, whose keys and values TMA brings: compiles wgmma_cuda/attend.cu, calls it.

Only bf16, the heads of CSM-1B's backbone, and GPUs of compute capability 9.0; step_attention.py has a Triton kernel for
the rest. reference.step_attend says what both compute.
"""

from __future__ import annotations

import ctypes
import math
from functools import cache

import torch
from torch import Tensor

from services.backbone.blocks import BLOCK_TOKENS
from services.backbone.kernels.nvrtc import Kernel, compile_cuda, options_for, tensor_map
from services.backbone.kernels.wgmma import ARCHITECTURE, SOURCES, has_kernels

HEADS, KV_HEADS, HEAD_DIM = 32, 8, 64
_WARPS, _STAGES = 2, 6  # of a block; tiles of a warp's ring
_TILE_BYTES = 2 * BLOCK_TOKENS * HEAD_DIM * 2  # of keys and values


class _Arguments(ctypes.Structure):
    _pointers = ("qkv", "rope", "slots", "positions", "tables", "new_keys", "new_values", "out")
    _fields_ = [
        ("keys", ctypes.c_uint64 * 16), ("values", ctypes.c_uint64 * 16), *((name, ctypes.c_void_p) for name in _pointers),
        ("head_size", ctypes.c_int64), ("count", ctypes.c_int), ("table_width", ctypes.c_int), ("scale", ctypes.c_float),
        ("padding", ctypes.c_uint64 * 5),
    ]  # fmt: skip


@cache
def source() -> str:
    """CUDA C++."""
    return "\n".join((SOURCES / name).read_text() for name in ("ptx.cu", "attend.cu"))


def compiler_options() -> list[str]:
    shape = {"HEADS": HEADS, "KV_HEADS": KV_HEADS}
    return options_for(ARCHITECTURE, {**shape, "WARPS": _WARPS, "STAGES": _STAGES, "SHARED": _shared_bytes()})


def _shared_bytes() -> int:
    return _WARPS * _STAGES * (_TILE_BYTES + 8)


@cache
def _kernel(device: torch.device) -> Kernel:
    cubin = compile_cuda(source(), "attend_step", compiler_options())
    return Kernel(cubin, "attend_step", shared_bytes=_shared_bytes())


def can_attend(qkv: Tensor, keys: Tensor) -> bool:
    """Whether attend() takes these arguments of reference.step_attend."""
    kv_heads, _, block_tokens, head_dim = keys.shape
    return (
        qkv.dtype == keys.dtype == torch.bfloat16
        and (kv_heads, block_tokens, head_dim) == (KV_HEADS, BLOCK_TOKENS, HEAD_DIM)
        and qkv.shape[1] == (HEADS + 2 * KV_HEADS) * HEAD_DIM
        and has_kernels(qkv.device)
    )


def attend(
    qkv: Tensor, rope: Tensor, slots: Tensor, positions: Tensor, tables: Tensor, keys: Tensor, values: Tensor, *, overlap: bool = False
) -> Tensor:  # fmt: skip
    """reference.step_attend, of a context in one part. Raises: CompileError at its first use."""
    out = torch.empty(len(qkv), HEADS * HEAD_DIM, device=qkv.device, dtype=qkv.dtype)
    tensors = (qkv, rope, slots, positions, tables, keys, values, out)
    assert all(tensor.is_contiguous() for tensor in tensors)
    assert slots.dtype == positions.dtype == torch.int64 and tables.dtype == torch.int32 and rope.dtype == torch.float32
    maps = (tensor_map(store.flatten(1, 2), (HEAD_DIM, BLOCK_TOKENS, 1)) for store in (keys, values))
    arguments = _Arguments(
        *maps, *(tensor.data_ptr() for tensor in tensors),
        keys[0].numel(), len(qkv), tables.shape[1], math.log2(math.e) / math.sqrt(HEAD_DIM),
    )  # fmt: skip
    _kernel(qkv.device).launch(len(qkv) * KV_HEADS, 32 * _WARPS, arguments, overlap=overlap)
    return out
