"""Put trained parts into a bundle's layout, and fold the sampling temperature that scored best into the heads.

Logits are scaled by 1.9 * 0.9 / 0.7, so that sampling at CSM's default temperature of 0.9 draws as 0.37 did in training's
own scale: 0.7 scored best of the first run, two thirds of that sounds cleaner since the fourth, and half of it since the fifth.

    python assemble.py --generator FOLDER --mimi FOLDER --watermark FOLDER --out FOLDER
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from generator import Settings
from safetensors.torch import load_file, save_file
from tokenizer import make
from torch import Tensor

# What the heads of the shipped bundle were multiplied by: codebook 0 and the others. `unpack.py` takes it out again.
SHARPEN = {"codebook0_head.weight": 1.9 * 0.9 / 0.7, "audio_head": 1.9 * 0.9 / 0.7}


def sharpened(tensors: dict[str, Tensor], factors: dict[str, float]) -> dict[str, Tensor]:
    """The generator's tensors, each head times its factor; they keep their types."""
    return {k: (v.float() * factors[k]).to(v.dtype) if k in factors else v for k, v in tensors.items()}


def compact(mimi: dict[str, Tensor]) -> dict[str, Tensor]:
    """Codebooks as plain fp16 tables: moshi divides embedding_sum by cluster_usage, which becomes 1."""
    for name in [name for name in mimi if name.endswith("cluster_usage")]:
        table = name.replace("cluster_usage", "embedding_sum")
        mimi[table] = (mimi[table] / mimi[name].clamp(min=1e-5)[:, None]).half()
        mimi[name] = mimi[name].new_ones(mimi[name].shape).half()
    return mimi


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("generator", "mimi", "watermark", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    args = parser.parse_args()
    for part in ("generator", "mimi", "watermark"):
        (args.out / part).mkdir(parents=True, exist_ok=True)
    tensors = load_file(args.generator / "model.safetensors")
    save_file(sharpened(tensors, SHARPEN), args.out / "generator/model.safetensors")
    (args.out / "generator/config.json").write_text(json.dumps(Settings().config(), indent=2) + "\n")
    shutil.copyfile(args.mimi / "config.json", args.out / "mimi/config.json")
    save_file(compact(load_file(args.mimi / "model.safetensors")), args.out / "mimi/model.safetensors")
    for name in ("hparams.yaml", "enc_c.ckpt", "dec_c.ckpt", "dec_m_0.ckpt"):
        shutil.copyfile(args.watermark / name, args.out / "watermark" / name)
    make().save(str(args.out / "tokenizer.json"))
    for path in sorted(args.out.rglob("*")):
        if path.is_file():
            path.chmod(0o644)
            print(f"{path.relative_to(args.out)}: {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
