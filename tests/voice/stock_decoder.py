"""The mark read by the stock silentcipher package, as anybody who has the weights can: crops of 2 s at random places.

A crop is decoded as it is, and where that does not give the key, with the package's own search for the phase, which
decodes it again at every tenth sample of a hop.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from attacks import ATTACKS, RATE_HZ, Attack, mp3
from table import Table

CROP = 2 * RATE_HZ
LEAST = {  # percent of the crops
    "clean": 95,
    "resampled to 16 kHz": 95,
    "MP3, 64 kb/s": 95,
    "Opus, 64 kb/s": 95,
    "noise at 20 dB": 80,
}
_ATTACKS: dict[str, Attack] = {"MP3, 64 kb/s": mp3, **ATTACKS}


def is_read(model: Any, key: tuple[int, ...], audio: np.ndarray, *, search: bool) -> bool:
    """Whether the package's model reads the key in audio at RATE_HZ. search: with its own search for the phase."""
    result = model.decode_wav(audio, RATE_HZ, phase_shift_decoding=search)
    return bool(result["status"]) and tuple(result["messages"][0]) == key


class _Worker:
    """One process with the package's model, which it never puts in eval mode."""

    model = None
    key: tuple[int, ...] = ()

    @classmethod
    def begin(cls, files: Mapping[str, Path], key: tuple[int, ...]) -> None:
        import torch

        from support.watermark_pair import stock_model

        torch.set_num_threads(1)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        cls.model, cls.key = stock_model(files, device), key

    @classmethod
    def read(cls, job: tuple[str, int, str, np.ndarray]) -> dict:
        name, number, wav, audio = job
        for search in (False, True):
            if is_read(cls.model, cls.key, audio, search=search):
                return {"attack": name, "crop": number, "wav": wav, "read": True, "search": search}
        return {"attack": name, "crop": number, "wav": wav, "read": False, "search": True}


def crops(folder: Path, count: int) -> list[tuple[int, str, np.ndarray]]:
    """Crops at random places of the marked clips that are long enough: (number, file, samples)."""
    found = {p.name: soundfile.read(p, dtype="float32")[0] for p in sorted(folder.glob("*.wav"))}
    clips = [(name, audio) for name, audio in found.items() if len(audio) >= CROP]
    draw, chosen = np.random.default_rng(0), []
    for number in range(count):
        name, audio = clips[number * len(clips) // count]
        at = int(draw.integers(0, len(audio) - CROP + 1))
        chosen.append((number, name, audio[at : at + CROP]))
    return chosen


def readings(out: Path, files: Mapping[str, Path], key: tuple[int, ...], count: int) -> list[dict]:
    """One note a crop and attack. files: of the bundle's watermark, role to path."""
    jobs = [
        (name, number, wav, _ATTACKS[name](audio, np.random.default_rng([number, index])).astype(np.float32))
        for number, wav, audio in crops(out / "marked", count)
        for index, name in enumerate(LEAST)
    ]
    context = multiprocessing.get_context("spawn")
    with context.Pool(os.cpu_count(), _Worker.begin, (dict(files), key)) as pool:
        notes = []
        for note in pool.imap_unordered(_Worker.read, jobs):
            notes.append(note)
            if len(notes) % max(1, len(jobs) // 8) == 0:
                print(f"  stock decoder: {len(notes)} of {len(jobs)}", flush=True)
    return notes


def rows(notes: list[dict], result: Table) -> None:
    for name, least in LEAST.items():
        reads = [note for note in notes if note["attack"] == name]
        hits = [note for note in reads if note["read"]]
        plain = sum(not note["search"] for note in hits)
        result.at_least(
            f"stock decoder reads the key in 2 s, {name}",
            100 * len(hits) / len(reads),
            least,
            " %",
            f"{len(hits)} of {len(reads)}, {plain} without a search for the phase",
        )
