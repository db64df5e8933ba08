"""As compile_kernels.py, for the marker's kernels at the public model's shapes: python tests/bench/compile_watermark.py [FOLDER for PTX]"""

from __future__ import annotations

import sys

import triton
from compile_kernels import report

from services.watermark.kernels import fused

# channels, the next layer's width, what else it sees
GATED = [(32, 32, 0), (32, 36, 2), (32, 40, 2), (96, 96, 0)]


def main() -> int:
    print(f"triton {triton.__version__}, sm_90\n")
    columns = (
        "kernel | warps | registers | bytes spilled | shared bytes | 16-byte loads | asynchronous copies | tensor cores"
    )
    print(f"| {columns} |\n|{'---|' * 8}")
    good = True
    for precision in ("fp32", "tf32", "fp16"):
        half, data, exact = precision == "fp16", "*fp16" if precision == "fp16" else "*fp32", "*fp32"
        place = {
            "inside": "*i8",
            "rows": "*i64",
            "counts": "*i64",
            "bias": exact,
            "shift": exact,
            "steps": "i32",
            "bins": "i32",
        }
        for cut in (False, True):
            # As they come: all columns within their streams, equally many of each. Filled up: neither.
            constants = {"CUT": cut, "COUNTED": cut, "HALF": half, "ROUNDS": precision == "tf32"}
            label = f"{precision}{', filled up' if cut else ''}"
            for channels, width, extra in GATED:
                if (width == 40) != half and extra:
                    continue
                given = {**place, "both": data, "extra": exact, "pool": data, "out": data}
                shape = {"CHANNELS": channels, "WIDTH": width, "EXTRA": extra, "BLOCK": fused._BLOCK}
                good &= report(
                    f"gated_layer {channels} to {width} {label}", fused._gate_kernel, given, {**constants, **shape}, 4
                )
            given = {**place, "x": exact, "weight": exact, "pool": data, "out": data}
            good &= report(
                f"first {label}", fused._first_kernel, given, {**constants, "CHANNELS": 32, "PADDED": 32, "ROWS": 32}, 4
            )
            given = {
                "both": data,
                "bias": exact,
                "shift": exact,
                "weight": exact,
                "ending": exact,
                "inside": "*i8",
                "out": exact,
                "bins": "i32",
            }
            constants = {"CHANNELS": 96, "PADDED": 128, "CUT": cut, "HALF": half, "ROWS": 16}
            good &= report(f"output_layers {label}", fused._output_kernel, given, constants, 4)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
