"""Kernels of CUDA C++ on a CPU: their source compiled by g++, each CUDA thread a fiber of one core.

What is in PTX (ptx.cu) is replaced by ptx.h, or by tiles.h where TMA brings tiles, and by mma.h. Blocks run in an order of chance. It
finds wrong indices, waits that never end, and pieces of weights read before they are there; not how a GPU orders what
it writes to memory.
"""

from __future__ import annotations

import ctypes
import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

HERE = Path(__file__).parent
CAN_RUN = shutil.which("g++") is not None and platform.machine() == "x86_64"
_MOST_TURNS = 20_000


def compile_for_cpu(
    source: str, ptx: str, options: Sequence[str], folder: Path, kernel: str = "decode_frame",
    arguments: str = "Args", replacement: str = "ptx.h",
) -> bytes:  # fmt: skip
    """The source, in which `ptx` is replaced, and NVRTC's options → the path of a library that launches one of its kernels."""
    threads, ours, mma, run = ((HERE / name).read_text() for name in ("threads.h", replacement, "mma.h", "run.h"))
    text = source.replace(ptx, ours + mma)
    assert text != source and "asm" not in text
    defines = [option for option in options if option.startswith("-D")]
    (folder / f"{kernel}.cpp").write_text("\n".join([threads, text, run]))
    command = ["g++", "-O1", "-std=c++17", "-w", "-shared", "-fPIC", "-fno-strict-aliasing", "-fno-stack-protector"]
    names = [f"-DKERNEL={kernel}", f"-DARGUMENTS={arguments}"]
    library = folder / f"{kernel}.so"
    subprocess.run([*command, *defines, *names, folder / f"{kernel}.cpp", "-o", library], check=True)
    return bytes(library)


def tensor_map(tensor: Tensor, box: tuple[int, int, int]) -> ctypes.Array[ctypes.c_uint64]:
    """As nvrtc.tensor_map, in the words that tiles.h reads."""
    words = [tensor.data_ptr(), *reversed(tensor.shape), tensor.stride(1) * 2, tensor.stride(0) * 2, *box]
    return (ctypes.c_uint64 * 16)(*words)


class Kernel:
    """As nvrtc.Kernel. `library`: the path that compile_for_cpu returned."""

    def __init__(self, library: bytes, function: str, *, shared_bytes: int):
        self._launch = ctypes.CDLL(library.decode()).launch
        self._launch.restype = ctypes.c_long
        self._launches = 0

    def launch(self, blocks: int, threads: int, arguments: ctypes.Structure, **_: int) -> None:
        self.launch_cooperative(blocks, threads, arguments)

    def launch_cooperative(self, blocks: int, threads: int, arguments: ctypes.Structure) -> None:
        """Raises: RuntimeError when threads wait for each other forever."""
        self._launches += 1
        if self._launch(ctypes.byref(arguments), blocks, threads, self._launches, ctypes.c_long(_MOST_TURNS)) < 0:
            raise RuntimeError("threads wait for each other")
