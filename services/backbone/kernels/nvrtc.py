"""CUDA C++ to a loaded kernel, by NVRTC, which torch brings along, and the driver. Needs no headers and no nvcc."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)

_MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_CLUSTER, _OVERLAP = 4, 6  # CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION, …_PROGRAMMATIC_STREAM_SERIALIZATION
_BFLOAT16, _SWIZZLE_128B, _L2_256B = 9, 3, 3  # CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, …_SWIZZLE_128B, …_L2_PROMOTION_L2_256B


class _Attribute(ctypes.Structure):  # CUlaunchAttribute
    _fields_ = [("id", ctypes.c_uint), ("padding", ctypes.c_uint), ("value", ctypes.c_uint * 16)]


class _LaunchConfig(ctypes.Structure):  # CUlaunchConfig
    _fields_ = [
        ("grid", ctypes.c_uint * 3), ("block", ctypes.c_uint * 3), ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p), ("attributes", ctypes.POINTER(_Attribute)), ("attribute_count", ctypes.c_uint),
    ]  # fmt: skip


HOPPER_SHARED_BYTES = 227 * 1024  # that a block of a Hopper GPU can have


class CompileError(Exception):
    """NVRTC is missing or rejects the source."""


def compile_cuda(source: str, name: str, options: Sequence[str], library: ctypes.CDLL | None = None) -> bytes:
    """Source → cubin. Raises: CompileError with the compiler's log."""
    nvrtc = library or _nvrtc()
    program = ctypes.c_void_p()
    _check(nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), name.encode(), 0, None, None))
    try:
        given = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
        if nvrtc.nvrtcCompileProgram(program, len(options), given):
            size = ctypes.c_size_t()
            _check(nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size)))
            log = ctypes.create_string_buffer(size.value)
            _check(nvrtc.nvrtcGetProgramLog(program, log))
            raise CompileError(f"{name}: {log.value.decode(errors='replace')}")
        size = ctypes.c_size_t()
        _check(nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size)))
        binary = ctypes.create_string_buffer(size.value)
        _check(nvrtc.nvrtcGetCUBIN(program, binary))
        return binary.raw
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def options_for(architecture: str, constants: Mapping[str, int]) -> list[str]:
    """NVRTC's options. constants: names that the source takes from outside."""
    defined = [f"-D{name}={value}" for name, value in constants.items()]
    return [f"--gpu-architecture={architecture}", "--std=c++17", *defined]


@cache
def compiles_for(architecture: str) -> bool:
    """Whether NVRTC is there, whole and new enough for an architecture, as "sm_90a". If not, the log says why."""
    try:
        compile_cuda('extern "C" __global__ void nothing() {}', "nothing", [f"--gpu-architecture={architecture}"])
    except CompileError as error:
        log.warning("no CUDA C++ kernels, other ones do their work: %s", error)
        return False
    return True


class Kernel:
    """One function of a cubin on the current device, launched on the current stream."""

    def __init__(self, cubin: bytes, function: str, *, shared_bytes: int):
        torch.cuda.current_stream()  # a context is there
        self._driver = ctypes.CDLL("libcuda.so.1")
        self._module, self._function = ctypes.c_void_p(), ctypes.c_void_p()
        self._shared_bytes = shared_bytes
        self._call("cuModuleLoadData", ctypes.byref(self._module), cubin)
        self._call("cuModuleGetFunction", ctypes.byref(self._function), self._module, function.encode())
        self._call("cuFuncSetAttribute", self._function, _MAX_DYNAMIC_SHARED, shared_bytes)

    def launch_cooperative(self, blocks: int, threads: int, arguments: ctypes.Structure) -> None:
        """All blocks are on the device together, or the launch fails. Raises: RuntimeError."""
        pointers = (ctypes.c_void_p * 1)(ctypes.addressof(arguments))
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        self._call(
            "cuLaunchCooperativeKernel", self._function, blocks, 1, 1, threads, 1, 1, self._shared_bytes, stream, pointers
        )  # fmt: skip

    def launch(
        self, blocks: int, threads: int, arguments: ctypes.Structure, *, cluster: int = 1, overlap: bool = False
    ) -> None:
        """cluster: blocks that share memory. overlap: it may start before the launch ahead is over, for which it waits
        inside. Raises: RuntimeError.
        """
        config = self._config(blocks, threads, cluster, overlap)
        pointers = (ctypes.c_void_p * 1)(ctypes.addressof(arguments))
        self._call("cuLaunchKernelEx", ctypes.byref(config), self._function, pointers, None)

    def resident_clusters(self, threads: int, cluster: int) -> int:
        """How many clusters of blocks are on the device at once."""
        config, count = self._config(cluster, threads, cluster, False), ctypes.c_int()
        config.attribute_count = 2  # clusters of one block too
        self._call("cuOccupancyMaxActiveClusters", ctypes.byref(count), self._function, ctypes.byref(config))
        return count.value

    def _config(self, blocks: int, threads: int, cluster: int, overlap: bool) -> _LaunchConfig:
        # A launch that has clusters, be they of one block, starts many small blocks more slowly.
        wanted = [_Attribute(_OVERLAP, value=(overlap,)), _Attribute(_CLUSTER, value=(cluster, 1, 1))]
        count = 2 if cluster > 1 else 1
        attributes = (_Attribute * 2)(*wanted)
        stream = torch.cuda.current_stream().cuda_stream
        return _LaunchConfig((blocks, 1, 1), (threads, 1, 1), self._shared_bytes, stream, attributes, count)

    def _call(self, name: str, *arguments: Any) -> None:
        _driver_call(self._driver, name, *arguments)


def tensor_map(tensor: Tensor, box: tuple[int, int, int]) -> ctypes.Array[ctypes.c_uint64]:
    """CUtensorMap of three dimensions, bf16, contiguous: boxes that TMA loads, swizzled in 128 bytes; zeros outside.

    tensor: [c2, c1, c0]. box: (c0, c1, c2), c0 of 64 columns.
    """
    room = ctypes.create_string_buffer(128 + 63)
    at = (ctypes.addressof(room) + 63) // 64 * 64
    sizes, strides = (ctypes.c_uint64 * 3)(*reversed(tensor.shape)), (ctypes.c_uint64 * 2)()
    strides[0], strides[1] = tensor.stride(1) * 2, tensor.stride(0) * 2
    _driver_call(
        ctypes.CDLL("libcuda.so.1"), "cuTensorMapEncodeTiled", ctypes.c_void_p(at), _BFLOAT16, 3,
        ctypes.c_void_p(tensor.data_ptr()), sizes, strides, (ctypes.c_uint32 * 3)(*box), (ctypes.c_uint32 * 3)(1, 1, 1),
        0, _SWIZZLE_128B, _L2_256B, 0,
    )  # fmt: skip
    return (ctypes.c_uint64 * 16).from_buffer_copy(ctypes.string_at(at, 128))


def _driver_call(driver: ctypes.CDLL, name: str, *arguments: Any) -> None:
    result = getattr(driver, name)(*arguments)
    if result:
        text = ctypes.c_char_p()
        driver.cuGetErrorString(result, ctypes.byref(text))
        raise RuntimeError(f"{name}: {(text.value or b'unknown error').decode()} ({result})")


def _nvrtc() -> ctypes.CDLL:
    torch.cuda.init()  # loads the libraries that torch brings along
    major = (torch.version.cuda or "0").split(".")[0]
    for name in (f"libnvrtc.so.{major}", "libnvrtc.so"):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise CompileError("no NVRTC library beside torch")


def _check(result: int) -> None:
    if result:
        raise CompileError(f"NVRTC error {result}")
