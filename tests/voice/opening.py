"""Whether an opening (CSM_WATERMARK_OPENING_MS) changes what the stock silentcipher package and our detector say of a clip.

    PYTHONPATH=.:protos:tests:tests/voice python tests/voice/opening.py WAVS [--clips 300] [--openings 18]

WAVS: a folder of unmarked speech of the bundled voice, 24 kHz. Each clip is marked whole, without an opening and with each,
and its first two seconds are read: by the package clean, by our detector with noise at 20 dB too. The public model's opening
of a frame is 1.7 of its hops; 18 ms are as many of the bundled pair's.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from pathlib import Path

import numpy as np
import soundfile
import torch
from attacks import ATTACKS, RATE_HZ
from stock_decoder import is_read

from models.bundle import load_bundle
from services.watermark.detector import OFFSETS, Detector
from services.watermark.embedder import Embedder
from services.watermark.level import RunningLevel
from services.watermark.weights import load_nets
from support.watermark_pair import stock_model

CLIP = 2 * RATE_HZ


class _Worker:
    """One process with the pair, the package's model and our detector."""

    @classmethod
    def begin(cls, openings: list[int]) -> None:
        torch.set_num_threads(1)
        part = load_bundle("embedded").watermark
        files, options = part.resolve(), part.options
        cls.key, nets = bytes(options["public_key"]), load_nets(files)
        cls.stock = stock_model(files)
        cls.detector = Detector(nets, max_seconds=10, offsets=options.get("search_offsets", OFFSETS))
        cls.marking = {
            opening: Embedder(
                nets,
                cls.key,
                message_sdr_db=options.get("message_sdr_db"),
                level=RunningLevel(),
                opening_s=opening / 1000,
            )
            for opening in (0, *openings)
        }

    @classmethod
    def read(cls, job: tuple[int, Path]) -> dict[tuple[str, int], bool]:
        """(how it was read, opening) → whether the key was found."""
        number, path = job
        audio, found = soundfile.read(path, dtype="float32")[0], {}
        for opening, embedder in cls.marking.items():
            clean = embedder.embed(audio)[:CLIP]
            noisy = ATTACKS["noise at 20 dB"](clean, np.random.default_rng(number)).astype(np.float32)
            found["stock, clean", opening] = is_read(cls.stock, tuple(cls.key), clean, search=False)
            found["ours, clean", opening] = cls.detector.detect(clean, RATE_HZ, cls.key).found
            found["ours, noise at 20 dB", opening] = cls.detector.detect(noisy, RATE_HZ, cls.key).found
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wavs", type=Path)
    parser.add_argument("--clips", type=int, default=300)
    parser.add_argument("--openings", type=int, nargs="+", default=[18], help="milliseconds")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    jobs = list(enumerate(_long_enough(arguments.wavs, arguments.clips)))
    with multiprocessing.get_context("spawn").Pool(arguments.workers, _Worker.begin, (arguments.openings,)) as pool:
        clips = list(pool.imap_unordered(_Worker.read, jobs))
    for how, opening in clips[0]:
        read, same = (
            sum(clip[how, opening] for clip in clips),
            sum(clip[how, opening] == clip[how, 0] for clip in clips),
        )
        print(f"{how}, opening {opening} ms: {read} of {len(clips)}, {same} as without an opening")


def _long_enough(folder: Path, count: int) -> list[Path]:
    found = [path for path in sorted(folder.glob("*.wav")) if soundfile.info(path).frames >= CLIP]
    if len(found) < count:
        raise SystemExit(f"{folder} has {len(found)} clips of two seconds, fewer than {count}")
    return found[:count]


if __name__ == "__main__":
    main()
