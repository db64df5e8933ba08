"""As compile_kernels.py, for the codec's kernels at Mimi's shapes: python tests/bench/compile_codec.py [FOLDER for PTX]"""

from __future__ import annotations

import sys

import compile_kernels
import triton
from compile_kernels import report

from services.codec.kernels import PRECISIONS, fused

# rows, outputs, length of a layer of the transformer, of each kind of a convolution, for 1 to 256 streams
PRODUCTS = [
    (2, 1536, 512),
    (512, 512, 2048),
    (512, 1024, 3584),
    (4096, 512, 512),
    (4096, 4096, 2048),
    (245760, 256, 256),
    (24576, 128, 768),
    (491520, 32, 192),
    (491520, 64, 32),
]


def main() -> int:
    compile_kernels.SIZES.update(("pool_width", "x_width", "length", "out_steps"))
    print(f"triton {triton.__version__}, sm_90\n")
    columns = (
        "kernel | warps | registers | bytes spilled | shared bytes | 16-byte loads | asynchronous copies | tensor cores"
    )
    print(f"| {columns} |\n|{'---|' * 8}")
    data, number = "*fp32", "i32"
    good = True
    given = dict.fromkeys(("x", "weight", "low", "bias", "added", "out"), data)
    given |= dict.fromkeys(
        ("padding", "count", "steps", "x_steps", "out_steps", "added_steps", "x_width", "length", "outputs"), number
    )
    given["slots"] = "*i64"
    for precision in PRECISIONS:
        exact, half = precision == "fp32", precision == "fp16"
        for name in ("x", "weight", "low", "added", "out"):
            given[name] = "*fp16" if half else data
        for sizes in PRODUCTS:
            for kind, (before, after, added) in {
                "": (False, 0, False),
                "ELU": (True, 1, False),
                "added": (False, 1, True),
                "GELU": (False, 2, False),
            }.items():
                rows, outputs, block, warps, stages = fused.tile_of(
                    *sizes, precision, "gelu" if after == 2 else "", added
                )
                constants = {"BEFORE": before, "AFTER": after, "BIAS": True, "ADDED": added, "EXACT": exact,
                             "PADDED": True, "ROWS": rows, "COLUMNS": outputs, "BLOCK": block}  # fmt: skip
                label = f"product {rows}x{outputs}x{block} {kind} {precision}"
                good &= report(label, fused._product, given, constants, warps, num_stages=stages)
    for precision in ("tf32", "fp16"):
        half = precision == "fp16"
        kinds = dict.fromkeys(("x", "wide", "narrow", "out"), "*fp16" if half else data) | {"slots": "*i64"}
        kinds |= {"wide_bias": data, "narrow_bias": data}
        kinds |= dict.fromkeys(("padding", "count", "steps", "x_steps", "out_steps"), number)
        for hidden, count in ((32, 491520), (64, 122880), (128, 24576), (32, 1920), (128, 96)):
            rows, outputs, block, warps, stages = fused.residual_tile_of(count, half)
            constants = {"TAPS": 3, "WIDTH": 2 * hidden, "HIDDEN": hidden, "PADDED": True, "ROWS": rows,
                         "COLUMNS": outputs, "BLOCK": block}  # fmt: skip
            label = f"residual {hidden}, {rows}x{outputs}x{block} {precision}"
            good &= report(label, fused._residual, kinds, constants, warps, num_stages=stages)
    place = {
        "rows": "*i64",
        "offsets": "*i64",
        "keys": data,
        "values": data,
        "out": data,
        "steps": number,
        "ring": number,
    }
    for precision in PRECISIONS:
        exact = precision == "fp32"
        place["keys"] = place["values"] = place["out"] = "*fp16" if precision == "fp16" else data
        constants = {"HEADS": 8, "DIM": 64, "WIDTH": 64, "QUERIES": 16, "TILE": 32, "TILES": 9, "EXACT": exact}
        given = {"q": place["out"], **place, "context": number, "scale": "fp32"}
        good &= report(f"attend {precision}", fused._attend, given, constants, 4)
    given = {"qkv": data, "cos": data, "sin": data, **place}
    good &= report("rope_write", fused._rope_write, given, {"HEADS": 8, "DIM": 64, "WIDTH": 512}, 4)
    given = {
        "pool": data,
        "rows": "*i64",
        "x": data,
        **dict.fromkeys(("pool_width", "column", "steps", "width"), number),
    }
    good &= report("exchange_history", fused._exchange_kernel, given, {"HISTORY": 6, "BLOCK": 256}, 4)
    given = {"x": data, "weight": data, "bias": data, "out": data, "steps": number, "width": number}
    good &= report("to_samples", fused._to_samples, given, {"TAPS": 3, "WIDTH": 64, "BLOCK": 64}, 4)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
