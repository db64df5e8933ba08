"""Fold another sampling temperature into a finished bundle's heads, in place.

A request's temperature divides the logits: heads that are 1.5 times as large draw at 0.9 as they did at 0.6.

    python sharpen.py --generator ../../models/embedded/generator --factor 1.5     # then say so in SHARPEN of assemble.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

from assemble import SHARPEN, sharpened
from safetensors.torch import load_file, save_file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generator", type=Path, required=True, help="folder of model.safetensors")
    parser.add_argument("--factor", type=float, required=True, help="what the logits are multiplied by")
    args = parser.parse_args()
    path = args.generator / "model.safetensors"
    save_file(sharpened(load_file(path), dict.fromkeys(SHARPEN, args.factor)), path)
    path.chmod(0o644)


if __name__ == "__main__":
    main()
