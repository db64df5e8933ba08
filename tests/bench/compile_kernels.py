"""Compile every kernel for a Hopper GPU, on a machine without one, and print what ptxas says of each.

python tests/bench/compile_kernels.py [FOLDER for PTX] needs no GPU, only the triton package. Shapes are CSM-1B's. What to look
for: spills (none), registers, whether loads are wide, and whether products on tensor cores run one behind another.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.tools.tensor_descriptor import TensorDescriptor

from services.backbone.blocks import BLOCK_TOKENS
from services.backbone.kernels import (
    aligned_attention,
    attention,
    elementwise,
    matmul,
    sampling,
    split_matmul,
    step_attention,
)

FOLDER = Path(sys.argv[1]) if len(sys.argv) > 1 else None  # for the kernels' PTX
MOST_SHARED = 227 * 1024  # bytes that a block of a Hopper GPU can have
PTXAS = next(Path(triton.__file__).parent.rglob("bin/ptxas"))
SIZES = {"width", "bins", "codebooks", "outputs"}  # multiples of 16 here, which Triton sees when it is called


def report(
    label: str, kernel: Any, types: dict[str, str], constants: dict[str, Any], warps: int, **options: Any
) -> bool:
    """One row of the table. types: of the arguments that are no constants. Returns: whether nothing spilled."""
    names = kernel.arg_names
    aligned = [name for name, kind in types.items() if kind.startswith("*") or name in SIZES]
    source = ASTSource(
        kernel,
        {name: types.get(name, "constexpr") for name in names},
        {(names.index(name),): value for name, value in constants.items()},
        {(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps, **options})
    ptx = compiled.asm["ptx"]
    if FOLDER is not None:
        (FOLDER / f"{label.replace(' ', '_').replace(',', '')}.ptx").write_text(ptx)
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        said = subprocess.run(
            [PTXAS, "-arch=sm_90a", "-v", file.name, "-o", "/dev/null"], capture_output=True, text=True
        )
    registers, spilled = (
        int(re.search(pattern, said.stderr)[1]) for pattern in (r"Used (\d+) registers", r"(\d+) bytes spill stores")
    )
    is_serialized = "wgmma.mma_async instructions are serialized" in said.stderr + said.stdout
    wide, copies = len(re.findall(r"ld\.global\S*\.v4", ptx)), len(re.findall(r"cp\.async\.cg", ptx))
    cores = "wgmma" if "wgmma.mma" in ptx else "mma" if "mma.sync" in ptx else ""
    if is_serialized:
        cores += ", each waits for the one ahead"
    shared = compiled.metadata.shared
    print(f"| {label} | {warps} | {registers} | {spilled} | {shared} | {wide} | {copies} | {cores} |", flush=True)
    return spilled <= 16 and shared <= MOST_SHARED and registers * warps * 32 <= 65536


def main() -> int:
    print(f"triton {triton.__version__}, sm_90\n")
    columns = (
        "kernel | warps | registers | bytes spilled | shared bytes | 16-byte loads | asynchronous copies | tensor cores"
    )
    print(f"| {columns} |\n|{'---|' * 8}")
    good = True
    for kind in ("bf16", "fp32"):
        data = f"*{kind}"
        place = {"slots": "*i64", "positions": "*i64", "tables": "*i32", "keys": data, "values": data}
        sizes = {"blocks": "i32", "table_width": "i32"}
        types = {"x": "*fp32", "delta": data, "scale": data, "out": data, "width": "i32", "part": "i32", "eps": "fp32"}
        constants = {"PARTS": 1, "WIDTH": 2048, "OVERLAP": True}
        good &= report(f"add_norm {kind}", elementwise._add_norm, types, constants, 8, launch_pdl=True)
        types = {"gate_up": data, "out": data, "width": "i32"}
        good &= report(f"silu_mul {kind}", elementwise._silu_mul, types, {"BLOCK": 1024}, 4)
        types = {"codes": "*i64", "embeddings": data, "out": "*fp32", "vocab": "i32", "width": "i32"}
        good &= report(
            f"embed_frames {kind}", elementwise._embed_frames, types, {"CODEBOOKS": 32, "PADDED": 32, "BLOCK": 64}, 4
        )
        types = {"logits": data, "temperatures": "*fp32", "top_ks": "*i64", "seeds": "*i64", "frames": "*i64",
                 "codes": "*i64", "embeddings": data, "rows": "*fp32", "codebook": "i32", "bins": "i32",
                 "codebooks": "i32", "vocab": "i32", "width": "i32"}  # fmt: skip
        constants = {"HAS_ROWS": True, "BINS": 2048, "WIDTH": 1024, "OVERLAP": True}
        good &= report(f"sample {kind}", sampling._sample, types, constants, 8, launch_pdl=True)
        for heads, kv_heads, width in ((32, 8, 64), (8, 2, 128)):
            shape = {
                "HEADS": heads,
                "KV_HEADS": kv_heads,
                "HEAD_DIM": width,
                "BLOCK_TOKENS": BLOCK_TOKENS,
                "WIDTH": width,
            }
            types = {"qkv": data, "rope": "*fp32", **place, "out": data, **sizes}
            constants = {**shape, "PART": attention._HEADS_A_PROGRAM}
            good &= report(f"rope_write {width} {kind}", attention._rope_write, types, constants, 4)
            for splits in (1, 8):
                out = data if splits == 1 else "*fp32"
                types = {"q": data, **place, "out": out, "highest": out, "total": out, **sizes, "scale": "fp32"}
                constants = {**shape, "TILE": attention.TILE_TOKENS, "GROUP": 4, "PADDED": 16, "SPLITS": splits}
                good &= report(f"attend {width}, {splits} splits, {kind}", attention._attend, types, constants, 4)
                types = {"qkv": data, "rope": "*fp32", **{name: each for name, each in types.items() if name != "q"}}
                label = f"step_attend {width}, {splits} splits, {kind}"
                good &= report(label, step_attention._step, types, {**constants, "OVERLAP": True}, 4, launch_pdl=True)
            types = {"sums": "*fp32", "highest": "*fp32", "total": "*fp32", "out": data}
            constants = {"SPLITS": 8, "PADDED": 8, "HEAD_DIM": width, "WIDTH": width, "OVERLAP": True}
            good &= report(f"combine {width} {kind}", attention._combine, types, constants, 1)
        types = {"qkv": data, "picked": "*i64", "rope": "*fp32", "keys": data, "values": data, "out": data, "position": "i32",
                 "tokens_all": "i32", "tokens_per_slot": "i32", "picked_stride": "i32", "scale": "fp32"}  # fmt: skip
        constants = {
            "HEADS": 8,
            "KV_HEADS": 2,
            "HEAD_DIM": 128,
            "WIDTH": 128,
            "GROUP": 4,
            "PADDED": 8,
            "IS_PICKED": True,
            "OVERLAP": True,
        }
        for tile in (16, 32):
            label = f"aligned_attend {tile} {kind}"
            good &= report(
                label,
                aligned_attention._aligned,
                types,
                {**constants, "TILE": tile},
                1 if kind == "bf16" else 4,
                launch_pdl=True,
            )
        good &= report_products(kind)
    return 0 if good else 1


def report_products(kind: str) -> bool:
    """What the wrappers of matmul.py launch, caught before it is: every product of CSM-1B's layers."""
    good, dtype = True, {"bf16": torch.bfloat16, "fp32": torch.float32}[kind]
    names = {torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.int32: "*i32"}
    label = ""

    def type_of(value: Any) -> str:
        if isinstance(value, TensorDescriptor):
            return f"tensordesc<{kind}{value.block_shape}>"
        if isinstance(value, torch.Tensor):
            return names[value.dtype]
        return "i32" if isinstance(value, int) else "fp32"

    class Caught:
        def __init__(self, kernel: Any):
            self.kernel = kernel

        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            def launch(*given: Any, num_warps: int, **options: Any) -> None:
                nonlocal good
                launch_options = {name: options.pop(name) for name in ("num_stages", "launch_pdl") if name in options}
                types = {
                    name: type_of(value) for name, value in zip(self.kernel.arg_names, given, strict=False)
                }  # fmt: skip
                named = f"{label} {kind}, {'x'.join(map(str, grid))} programs"
                good &= report(named, self.kernel, types, options, num_warps, **launch_options)

            return launch

    kernels = [(matmul, "_one_row"), (matmul, "_gated"), (split_matmul, "_parts")]
    originals = [getattr(module, name) for module, name in kernels]
    for (module, name), kernel in zip(kernels, originals, strict=True):
        setattr(module, name, Caught(kernel))
    for width, heads, hidden in ((2048, 3072, 8192), (1024, 1536, 8192)):
        scale = torch.empty(width, dtype=dtype)
        wide = torch.empty(2 * hidden, width, dtype=dtype)
        x, gated = torch.empty(1, width), torch.empty(1, hidden, dtype=dtype)
        for what, outputs in (("qkv", heads), ("head", 2048)):
            label = f"{what} {width}"
            matmul.norm_linear(x, scale, 1e-5, torch.empty(outputs, width, dtype=dtype), True)
        label = f"gate_up {width}"
        matmul.norm_gated(x, scale, 1e-5, wide, True)
        label = f"out {width}"
        matmul.linear_add(x.to(dtype), torch.empty(width, width, dtype=dtype), x, True)
        label = f"down {width}"
        matmul.linear_add(gated, torch.empty(width, hidden, dtype=dtype), x, True)
        for count in (64, 128) if kind == "bf16" else ():  # more is _gated_tiles, which asks a GPU for its descriptors
            label = f"gate_up {width}, {count} rows"
            matmul.linear_gated(torch.empty(count, width, dtype=dtype), wide)
            for what, outputs, inner in (("out", width, width), ("down", width, hidden), ("qkv", heads, width)):
                label = f"{what} {width}, {count} rows"
                product = split_matmul.linear if what == "qkv" else split_matmul.linear_parts
                product(torch.empty(count, inner, dtype=dtype), torch.empty(outputs, inner, dtype=dtype), True)
    for (module, name), kernel in zip(kernels, originals, strict=True):
        setattr(module, name, kernel)
    return good


if __name__ == "__main__":
    sys.exit(main())
