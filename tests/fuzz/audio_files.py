"""Hostile audio files: real ones of every kind that is read, damaged at random.

    PYTHONPATH=.:protos:tests python -m fuzz.audio_files --files 10000

Each ends as a clip within the limits or in one line that names the field. Counts what decoder processes cost: one
that crashed, hung or ran out of memory was replaced, and refused its file alone.
"""

from __future__ import annotations

import argparse
import collections
import io
import random
import struct
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import soundfile

from services.runtime import decoder_process
from services.runtime.audio import MAX_CHANNELS, MAX_CLIP_RATE_HZ, AudioError
from services.runtime.audio_file import MAX_DECODED_BYTES, read_file

MAX_S = 5.0
_EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, 0x7FFF_0000)


def corpus() -> dict[str, bytes]:
    """Whole files of a quarter of a second, by name."""
    from gateway.audio import open_encoder

    t = np.arange(6_000) / 24_000
    mono = (0.4 * np.sin(2 * np.pi * 220 * t) * np.sin(2 * np.pi * 3 * t)).astype(np.float32)
    files = {}
    for name in ("wav", "wav_f32", "wav_mulaw", "wav_alaw", "flac", "mp3", "ogg_opus"):
        for streamed in (True, False):
            encoder = open_encoder(name, input_rate_hz=24_000, streamed=streamed, model="csm")
            files[f"{name}-{streamed}"] = b"".join([*encoder.feed(mono), *encoder.finish()])
    for kind, subtype in (
        ("WAV", "PCM_U8"), ("WAV", "PCM_24"), ("WAV", "DOUBLE"), ("WAVEX", "FLOAT"), ("RF64", "PCM_16"),
        ("FLAC", "PCM_24"), ("FLAC", "PCM_S8"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III"),
    ):  # fmt: skip
        for channels in (1, 6 if kind not in ("MP3",) else 2):
            file = io.BytesIO()
            soundfile.write(file, np.tile(mono[:, None], channels), 48_000, format=kind, subtype=subtype)
            files[f"{kind}-{subtype}-{channels}"] = file.getvalue()
    silence = io.BytesIO()
    soundfile.write(silence, np.zeros(8_000 * 3600, np.int16), 8_000, format="FLAC")
    files["FLAC-an-hour-of-silence"] = silence.getvalue()
    return files


def mutate(random_: random.Random, data: bytes, other: bytes) -> bytes:
    """One to three damages in a row. Headers are hit more often than samples."""
    damaged = bytearray(data)
    for _ in range(random_.choice((1, 1, 1, 2, 3))):
        head = min(len(damaged), random_.choice((64, 256, 1024, len(damaged))))
        at = random_.randrange(max(1, head))
        match random_.randrange(9):
            case 0:
                del damaged[random_.randrange(len(damaged) + 1) :]
            case 1:
                for _ in range(random_.choice((1, 4, 32))):
                    if damaged:
                        damaged[random_.randrange(max(1, min(head, len(damaged))))] ^= 1 << random_.randrange(8)
            case 2:
                form = random_.choice(("<I", ">I", "<H", ">H", "<Q"))
                value = random_.choice(_EXTREMES) & (256 ** struct.calcsize(form) - 1)
                damaged[at : at + struct.calcsize(form)] = struct.pack(form, value)
            case 3:  # a storm of one chunk
                piece = bytes(damaged[at : at + random_.choice((4, 8, 24, 100))])
                damaged[at:at] = piece * random_.choice((10, 1000))
            case 4:
                del damaged[at : at + random_.choice((1, 2, 7, 100))]
            case 5:
                damaged[at:at] = random_.randbytes(random_.choice((1, 3, 50)))
            case 6:
                cut = random_.randrange(len(other))
                damaged[at:] = other[cut:]
            case 7:
                damaged[at : at + 4] = random_.choice(
                    (b"fLaC", b"OggS", b"RIFF", b"data", b"fmt ", b"LIST", b"ID3\x04")
                )
            case 8:
                damaged[:0] = b"ID3\x04\0\0" + random_.randbytes(4) + random_.randbytes(random_.choice((0, 20)))
    return bytes(damaged)


@dataclass
class Outcome:
    """Of a run. refusals: by their words without numbers. slow_s: the longest file."""

    files: int = 0
    read: int = 0
    slow_s: float = 0.0
    refusals: collections.Counter[str] = field(default_factory=collections.Counter)
    wrong: list[str] = field(default_factory=list)
    growth_bytes: int = 0
    decoder_bytes: int = 0  # of the largest decoder process seen

    @property
    def crashes(self) -> int:
        return sum(count for words, count in self.refusals.items() if "its decoder failed" in words)

    def describe(self) -> str:
        """A table of what happened."""
        lines = [
            f"{self.files} files: {self.read} read, {sum(self.refusals.values())} refused, {len(self.wrong)} wrong",
            f"slowest {self.slow_s:.2f} s; decoder processes that failed: {self.crashes}",
            f"memory: server grew by {self.growth_bytes / 1e6:.1f} MB, largest decoder {self.decoder_bytes / 1e6:.0f} MB",
        ]
        lines += [f"{count:7} {words}" for words, count in self.refusals.most_common(25)]
        return "\n".join(lines + self.wrong[:20])


def run(files: int, seed: int = 0, originals: dict[str, bytes] | None = None) -> Outcome:
    """Read that many damaged files."""
    random_, whole = random.Random(seed), sorted((corpus() if originals is None else originals).items())
    outcome, process = Outcome(), psutil.Process()
    settled: int | None = None
    for number in range(files):
        name, data = random_.choice(whole)
        damaged = mutate(random_, data, random_.choice(whole)[1])
        began = time.perf_counter()
        try:
            clip = read_file(damaged, max_duration_s=MAX_S)
            outcome.read += 1
            _check_clip(outcome, f"{name} #{number}", clip)
        except AudioError as error:
            outcome.refusals["".join("#" if c.isdigit() else c for c in error.description)[:110]] += 1
            if error.field != "file" or "\n" in error.description or len(error.description) > 400:
                outcome.wrong.append(f"{name} #{number}: {error!r}")
        except Exception as error:
            outcome.wrong.append(f"{name} #{number}: {type(error).__name__}: {error}")
        outcome.slow_s = max(outcome.slow_s, time.perf_counter() - began)
        outcome.files += 1
        if number % 50 == 0 or number == files - 1:
            for child in process.children():
                try:
                    outcome.decoder_bytes = max(outcome.decoder_bytes, child.memory_info().rss)
                except psutil.NoSuchProcess:
                    continue
            if len(process.children()) > 2:
                outcome.wrong.append(f"#{number}: {len(process.children())} decoder processes")
        if number == files // 4:
            settled = process.memory_info().rss
    if settled is not None:
        outcome.growth_bytes = process.memory_info().rss - settled
    decoder_process.end_idle()
    return outcome


def _check_clip(outcome: Outcome, name: str, clip) -> None:
    channels = 1 if clip.channels is None else len(clip.channels)
    size = 4 * channels * len(clip.samples)
    fits = clip.duration_s <= MAX_S + 0.01 and clip.sample_rate_hz <= MAX_CLIP_RATE_HZ and channels <= MAX_CHANNELS
    if not fits or not len(clip.samples) or size > MAX_DECODED_BYTES or not np.all(np.isfinite(clip.samples)):
        outcome.wrong.append(f"{name}: {clip} is beyond the limits")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--corpus", type=Path, help="take the whole files from here; written when it is no folder yet")
    arguments = parser.parse_args()
    originals = None
    if arguments.corpus is not None:
        if not arguments.corpus.is_dir():
            arguments.corpus.mkdir(parents=True)
            for name, data in corpus().items():
                (arguments.corpus / name).write_bytes(data)
        originals = {path.name: path.read_bytes() for path in arguments.corpus.iterdir()}
    outcome = run(arguments.files, arguments.seed, originals)
    print(outcome.describe(), flush=True)
    return 1 if outcome.wrong or outcome.growth_bytes > 100 << 20 else 0


if __name__ == "__main__":
    raise SystemExit(main())
