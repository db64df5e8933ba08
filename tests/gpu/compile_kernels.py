"""Compile every kernel for a Hopper GPU, on a machine without one, and print what ptxas says of each.

python tests/gpu/compile_kernels.py needs the triton package alone. Shapes are CSM-1B's. What to look
for: spills (none), registers, and whether loads are wide.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from services.backbone.blocks import BLOCK_ROWS
from services.backbone.kernels import attention, rows, sampling

PTXAS = next(Path(triton.__file__).parent.rglob("bin/ptxas"))
SIZES = {"width", "bins", "codebooks"}  # multiples of 16 here, which Triton sees when it is called


def report(label: str, kernel: Any, types: dict[str, str], constants: dict[str, Any], warps: int) -> bool:
    """One row of the table. types: of the arguments that are no constants. Returns: whether nothing spilled."""
    names = kernel.arg_names
    aligned = [name for name, kind in types.items() if kind.startswith("*") or name in SIZES]
    source = ASTSource(
        kernel,
        {name: types.get(name, "constexpr") for name in names},
        {(names.index(name),): value for name, value in constants.items()},
        {(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
    ptx = compiled.asm["ptx"]
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        said = subprocess.run([PTXAS, "-arch=sm_90a", "-v", file.name, "-o", "/dev/null"], capture_output=True, text=True)
    registers, spilled = (
        int(re.search(pattern, said.stderr)[1]) for pattern in (r"Used (\d+) registers", r"(\d+) bytes spill stores")
    )
    wide, copies = len(re.findall(r"ld\.global\S*\.v4", ptx)), len(re.findall(r"cp\.async\.cg", ptx))
    print(f"| {label} | {registers} | {spilled} | {compiled.metadata.shared} | {wide} | {copies} |")
    return spilled == 0


def main() -> int:
    print(f"triton {triton.__version__}, sm_90\n")
    print("| kernel | registers | bytes spilled | shared bytes | 16-byte loads | asynchronous copies |\n|---|---|---|---|---|---|")
    good = True
    for kind in ("bf16", "fp32"):
        data = f"*{kind}"
        place = {"slots": "*i64", "positions": "*i64", "tables": "*i32", "keys": data, "values": data}
        sizes = {"blocks": "i32", "table_width": "i32"}
        types = {"x": data, "delta": data, "scale": data, "out": data, "width": "i32", "eps": "fp32"}
        good &= report(f"add_norm {kind}", rows._add_norm, types, {"HAS_DELTA": True, "WIDTH": 2048}, 8)
        types = {"gate_up": data, "out": data, "width": "i32"}
        good &= report(f"silu_mul {kind}", rows._silu_mul, types, {"BLOCK": 1024}, 4)
        types = {"codes": "*i64", "embeddings": data, "out": data, "vocab": "i32", "width": "i32"}
        good &= report(f"embed_frames {kind}", rows._embed_frames, types, {"CODEBOOKS": 32, "BLOCK": 256}, 2)
        types = {"logits": data, "temperatures": "*fp32", "top_ks": "*i64", "seeds": "*i64", "frames": "*i64",
                 "codes": "*i64", "embeddings": data, "rows": data, "codebook": "i32", "bins": "i32",
                 "codebooks": "i32", "vocab": "i32", "width": "i32"}  # fmt: skip
        good &= report(f"sample {kind}", sampling._sample, types, {"HAS_ROWS": True, "BINS": 2048, "WIDTH": 1024}, 4)
        for heads, kv_heads, width in ((32, 8, 64), (8, 2, 128)):
            shape = {"HEADS": heads, "KV_HEADS": kv_heads, "HEAD_DIM": width, "ROWS": BLOCK_ROWS}
            types = {"qkv": data, "rope": "*fp32", **place, "out": data, **sizes}
            constants = {**shape, "PART": attention._HEADS_A_PROGRAM}
            good &= report(f"rope_write {width} {kind}", attention._rope_write, types, constants, 4)
            for splits in (1, 8):
                out = data if splits == 1 else "*fp32"
                types = {"q": data, **place, "out": out, "highest": out, "total": out, **sizes, "scale": "fp32"}
                constants = {**shape, "TILE": attention._TILE_ROWS, "GROUP": 4, "PADDED": 16, "SPLITS": splits}
                good &= report(f"attend {width}, {splits} splits, {kind}", attention._attend, types, constants, 4)
            types = {"sums": "*fp32", "highest": "*fp32", "total": "*fp32", "out": data}
            constants = {"SPLITS": 8, "PADDED": 8, "HEAD_DIM": width}
            good &= report(f"combine {width} {kind}", attention._combine, types, constants, 1)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
