"""Synthesise the training speech: many processes, each appending shards until told to stop.

A shard is one .npz: audio int16 [samples], phones uint8 [samples / 960], and per utterance its
text, speaker and length in 80 ms frames. Shard names carry the worker and a serial number, so a
restarted run continues after the last complete shard and never repeats a seed.

    python speech.py --text .voice/text --out /tmp/voice/speech --workers 15
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from pathlib import Path

import numpy as np

SHARD_SECONDS = 900
SPEAKER_SHARES = (0.19, 0.27, 0.27, 0.27)  # the moved voices were learnt worse from the same share


def work(worker: int, text: Path, out: Path, stop: Path, first_seed: int, shares: list[float]) -> None:
    from text import Writer
    from voices import FRAME_SAMPLES, SAMPLE_RATE_HZ, Teacher

    scratch = out / f"worker{worker}"
    scratch.mkdir(exist_ok=True)
    teacher = Teacher(scratch)
    serial = len(list(out.glob(f"shard-{worker:02d}-*.npz")))
    while not stop.exists():
        seed = first_seed + worker * 100_000 + serial
        writer, draw = iter(Writer(text, seed)), np.random.default_rng(seed)
        texts, speakers, frames, audio, phones, samples = [], [], [], [], [], 0
        target = SHARD_SECONDS if serial else SHARD_SECONDS // 6  # a first small one, so that training can start
        while samples < target * SAMPLE_RATE_HZ and not stop.exists():
            speaker = int(draw.choice(len(shares), p=shares))
            line = next(writer)
            said = teacher.say(line, speaker, int(draw.integers(2**31)))
            if said is None or len(said.audio) > 16 * SAMPLE_RATE_HZ:
                continue
            texts.append(line)
            speakers.append(speaker)
            frames.append(len(said.audio) // FRAME_SAMPLES)
            audio.append(said.audio)
            phones.append(said.phones)
            samples += len(said.audio)
        if not texts:
            return
        path = out / f"shard-{worker:02d}-{serial:05d}.npz"
        with open(out / f".{path.name}", "wb") as file:
            np.savez(
                file,
                audio=np.concatenate(audio),
                phones=np.concatenate(phones),
                frames=np.array(frames, np.int32),
                speakers=np.array(speakers, np.uint8),
                texts=np.array("\n".join(texts)),
            )
        os.replace(out / f".{path.name}", path)
        serial += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--hours", type=float, default=1e9)
    parser.add_argument("--seed", type=int, default=0, help="another one for each sitting: fresh speech")
    parser.add_argument("--shares", type=float, nargs=4, default=SPEAKER_SHARES, help="of the four speakers")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    shares = [share / sum(args.shares) for share in args.shares]
    stop = args.out / "stop"
    processes = [
        multiprocessing.Process(target=work, args=(i, args.text, args.out, stop, args.seed, shares), daemon=True)
        for i in range(args.workers)
    ]
    for process in processes:
        process.start()
    while any(process.is_alive() for process in processes):
        time.sleep(1)
        made = sum(path.stat().st_size for path in args.out.glob("shard-*.npz")) / 48000 / 3600
        if made >= args.hours:
            stop.touch()


if __name__ == "__main__":
    main()
