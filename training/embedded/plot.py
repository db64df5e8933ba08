"""Draw the curves in a folder of .jsonl logs: python plot.py FOLDER OUT.png"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SHOWN = {
    "codec_full": ["mel", "phase", "phone"], "codec_decoder": ["mel", "judge", "match"],
    "generator": ["codebook0", "others", "phoneme"], "watermark": ["loss", "hit_frozen", "hit_clip"],
}  # fmt: skip

if __name__ == "__main__":
    figure, axes = plt.subplots(1, 4, figsize=(14, 3), dpi=70, layout="constrained")
    for axis, (name, curves) in zip(axes, SHOWN.items(), strict=True):
        rows = [json.loads(line) for line in (Path(sys.argv[1]) / f"{name}.jsonl").read_text().splitlines()]
        for curve in curves:
            axis.plot([row["step"] for row in rows], [row[curve] for row in rows], label=curve)
        axis.set_title(name)
        axis.legend(fontsize=7)
    figure.savefig(sys.argv[2])
