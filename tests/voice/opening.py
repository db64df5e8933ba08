"""Whether an opening (CSM_WATERMARK_OPENING_MS) changes what the stock silentcipher package and our detector say of a clip.

    PYTHONPATH=.:protos:tests:tests/voice python tests/voice/opening.py WAVS [--clips 300] [--openings 18 80]

WAVS: a folder of unmarked speech of the bundled voice, 24 kHz. Each clip is marked whole, without an opening and with each,
and its first two seconds are read, clean and with noise at 20 dB. The public model's opening of a frame is 1.7 of its hops;
18 ms are as many of the bundled pair's.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import soundfile
import torch
from attacks import ATTACKS, RATE_HZ

from models.bundle import load_bundle
from services.watermark.detector import OFFSETS, Detector
from services.watermark.embedder import Embedder
from services.watermark.level import RunningLevel
from services.watermark.weights import load_nets
from support.watermark_pair import stock_model

CLIP = 2 * RATE_HZ


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wavs", type=Path)
    parser.add_argument("--clips", type=int, default=300)
    parser.add_argument("--openings", type=int, nargs="+", default=[18, 80], help="milliseconds")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    part = load_bundle("embedded").watermark
    files, options = part.resolve(), part.options
    key = bytes(options["public_key"])
    nets, stock = load_nets(files), stock_model(files)
    detector = Detector(nets, max_seconds=10, offsets=options.get("search_offsets", OFFSETS))
    marking = {
        each: Embedder(
            nets, key, message_sdr_db=options.get("message_sdr_db"), level=RunningLevel(), opening_s=each / 1000
        )
        for each in (0, *arguments.openings)
    }
    conditions = {"clean": lambda audio, draw: audio, "noise at 20 dB": ATTACKS["noise at 20 dB"]}
    read: dict[tuple[str, str, int], list[bool]] = {}
    for number, path in enumerate(_long_enough(arguments.wavs, arguments.clips)):
        audio = soundfile.read(path, dtype="float32")[0]
        for opening, embedder in marking.items():
            marked = embedder.embed(audio)[:CLIP]
            for name, attack in conditions.items():
                received = attack(marked, np.random.default_rng(number)).astype(np.float32)
                result = stock.decode_wav(received, RATE_HZ, phase_shift_decoding=False)
                by_stock = bool(result["status"]) and bytes(result["messages"][0]) == key
                read.setdefault(("stock", name, opening), []).append(by_stock)
                found = detector.detect(received, RATE_HZ, key).found
                read.setdefault(("ours", name, opening), []).append(found)
    for (reader, name, opening), verdicts in read.items():
        same = sum(a == b for a, b in zip(verdicts, read[reader, name, 0], strict=True))
        print(
            f"{reader}, {name}, opening {opening} ms: {sum(verdicts)} of {len(verdicts)}, {same} as without an opening"
        )


def _long_enough(folder: Path, count: int) -> list[Path]:
    found = [path for path in sorted(folder.glob("*.wav")) if soundfile.info(path).frames >= CLIP]
    if len(found) < count:
        raise SystemExit(f"{folder} has {len(found)} clips of two seconds, fewer than {count}")
    return found[:count]


if __name__ == "__main__":
    main()
