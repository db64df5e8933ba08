"""As compile_kernels.py, for the marker's kernels at the public model's shapes: python tests/bench/compile_watermark.py [FOLDER for PTX]"""

from __future__ import annotations

import sys

import torch
import triton
from compile_kernels import report

from services.watermark.kernels import BLOCK, convolution, fused

# given, channels, the next layer's width, what else it sees
GATED = {
    "fp32": [(32, 32, 32, 0), (32, 32, 36, 2), (36, 96, 96, 0)],
    "tf32": [(32, 32, 32, 0), (32, 32, 36, 2), (36, 96, 96, 0), (96, 96, 96, 0)],
    "fp16": [(32, 32, 32, 0), (32, 32, 40, 2), (40, 96, 96, 0), (96, 96, 96, 0)],
}


def main() -> int:
    print(f"triton {triton.__version__}, sm_90\n")
    columns = (
        "kernel | warps | registers | bytes spilled | shared bytes | 16-byte loads | asynchronous copies | tensor cores"
    )
    print(f"| {columns} |\n|{'---|' * 8}")
    good, exact = True, "*fp32"
    for precision, layers in GATED.items():
        half, data = precision == "fp16", "*fp16" if precision == "fp16" else "*fp32"
        window = torch.empty(0, dtype=torch.float16 if half else torch.float32)
        own = {"bias": exact, "shift": exact, "inside": "*i8", "rows": "*i64", "counts": "*i64", "padding": "i32"}
        own |= {"steps": "i32", "bins": "i32", "pool": data, "out": data, "extra": exact}
        for cut in (False, True):
            # As they come: all columns within their streams, equally many of each. Filled up: neither.
            constants = {"CUT": cut, "COUNTED": cut, "ROUNDS": precision == "tf32"}
            label = f"{precision}{', filled up' if cut else ''}"
            for given, channels, width, extra in layers:
                shape = {"CHANNELS": channels, "WIDTH": width, "EXTRA": extra}
                name = f"gated_layer {given} to {channels}, {width} {label}"
                if precision == "fp32" or (given == 96 and not half):
                    types = {name: kind for name, kind in own.items() if name != "padding"} | {"both": data}
                    good &= report(name, fused._gate_kernel, types, {**constants, **shape, "BLOCK": fused._BLOCK}, 4)
                    continue
                wide, narrow = convolution.parts_of(channels)
                tile = convolution.tile_of(channels, window)
                shape |= {
                    "HALF": half,
                    "GIVEN": given,
                    "WIDE": wide,
                    "NARROW": narrow,
                    "TILE": tile["TILE"],
                    "BLOCK": BLOCK,
                }
                types = {**own, "window": data, "weight": data}
                options = {key: tile[key] for key in ("num_stages", "maxnreg") if key in tile}
                # With few registers some bytes spill at a program's end, which costs less than a program fewer at a time.
                good &= (
                    report(name, convolution.gated_kernel, types, {**constants, **shape}, tile["num_warps"], **options)
                    or "maxnreg" in tile
                )
            types = {name: kind for name, kind in own.items() if name != "extra"} | {"x": exact, "weight": exact}
            shape = {"CHANNELS": 32, "PADDED": 32, "ROWS": 32, "HALF": half}
            good &= report(f"first {label}", fused._first_kernel, types, {**constants, **shape}, 4)
            types = {"bias": exact, "shift": exact, "inside": "*i8", "out": exact, "bins": "i32", "ending": exact}
            if not half:
                shape = {"CHANNELS": 96, "PADDED": 128, "CUT": cut, "ROWS": 16}
                types |= {"both": data, "weight": exact}
                good &= report(f"output_layers {label}", fused._output_kernel, types, shape, 4)
                continue
            shape = {"GIVEN": 96, "CHANNELS": 96, "CUT": cut, "WIDE": 128, "NARROW": 64}
            tile = convolution.tile_of(96, window, ends=True)
            shape |= {"TILE": tile["TILE"], "BLOCK": BLOCK}
            types |= {"window": data, "weight": data, "last": exact, "rows": "*i64", "padding": "i32", "steps": "i32"}
            name, kernel = f"output_layers {label}", convolution.output_kernel
            good &= report(name, kernel, types, shape, tile["num_warps"], num_stages=tile["num_stages"])
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
