"""Take a bundle apart so that training can go on from it: `assemble.py` the other way round.

The heads lose the sampling temperature that was folded into them; the codec lies where the trainers look for it.

    python unpack.py --bundle .. --out WORK/from     # → WORK/from/generator, WORK/from/codec/mimi
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from assemble import SHARPEN
from safetensors.torch import load_file, save_file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    generator, codec = args.out / "generator", args.out / "codec/mimi"
    for folder in (generator, codec):
        folder.mkdir(parents=True, exist_ok=True)
    tensors = load_file(args.bundle / "generator/model.safetensors")
    for head, factor in SHARPEN.items():
        tensors[head] = tensors[head].float() / factor  # kept in fp32: rounded once is enough
    save_file(tensors, generator / "model.safetensors")
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(args.bundle / "mimi" / name, codec / name)


if __name__ == "__main__":
    main()
