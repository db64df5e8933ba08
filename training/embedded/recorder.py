"""Synthesise the training speech with Kokoro: a few processes write and read the text, one speaks on the GPU.

Shards are those of `speech.py`. Numbers, dates and money are written in words, as the tokenizer service does it, but for
one line in twelve, which stays as it was written: a caller may turn that off. The GPU is shared with the trainings; synthesis stops at --hours, or when the file
`stop` appears. A restarted run goes on with other seeds.

    python recorder.py --text TEXT --kokoro kokoro.safetensors --out WORK/speech --seed 9000000 --hours 100
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import queue
import sys
import threading
import time
from itertools import islice
from pathlib import Path

import numpy as np

SHARD_SECONDS = 900
LINES = 400  # of one seed
SHARES = (0.22, 0.26, 0.26, 0.26)
AS_WRITTEN = 1 / 12
ROOT = Path(__file__).parents[2]  # of the repository, for the spoken form


def read(worker: int, text: Path, lines: multiprocessing.Queue, first_seed: int, shares: list[float]) -> None:
    """Endless: lists of (text, speaker, phoneme ids). The seed of every LINES lines is first_seed + 100,000 worker + serial."""
    sys.path.append(str(ROOT))
    from cast import Reader
    from text import Writer, key_of

    from services.tokenizer.spoken.form import NotSpeakable, SpokenForm

    reader, spoken, serial = Reader(), SpokenForm(("en",)), 0
    writer = Writer(text, 0)
    while True:
        seed = first_seed + worker * 100_000 + serial
        writer.draw.seed(seed)
        draw = np.random.default_rng(seed)
        found = []
        for line in islice(iter(writer), LINES):
            speaker = int(draw.choice(len(shares), p=shares))
            if draw.random() >= AS_WRITTEN:
                try:
                    line = spoken.of(line)
                except NotSpeakable:
                    continue
            if key_of(line) in writer.held_out:  # "Mr. Brown", now in words
                continue
            if (ids := reader.ids(line)) is not None:
                found.append((line, speaker, ids))
        for at in range(0, len(found), 32):
            lines.put(found[at : at + 32])
        serial += 1


def store(shards: queue.Queue, out: Path) -> None:
    """Write what comes as (serial, utterances), until None comes."""
    while (item := shards.get()) is not None:
        serial, said = item
        path = out / f"shard-{serial:05d}.npz"
        with open(out / f".{path.name}", "wb") as file:
            np.savez(
                file, audio=np.concatenate([u.audio for u in said]), phones=np.concatenate([u.phones for u in said]),
                frames=np.array([len(u.phones) // 2 for u in said], np.int32),
                speakers=np.array([u.speaker for u in said], np.uint8), texts=np.array("\n".join(u.text for u in said)),
            )  # fmt: skip
        os.replace(out / f".{path.name}", path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--kokoro", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--readers", type=int, default=4)
    parser.add_argument("--hours", type=float, default=1e9)
    parser.add_argument("--seed", type=int, required=True, help="another one for each sitting: fresh speech")
    parser.add_argument("--shares", type=float, nargs=4, default=SHARES, help="of the four speakers")
    parser.add_argument("--at-once", type=int, default=128, help="lines through the front half together")
    parser.add_argument("--area-s", type=float, default=240, help="seconds of speech in one batch")
    parser.add_argument("--shard-s", type=float, default=SHARD_SECONDS)
    parser.add_argument(
        "--first", type=int, default=0, help="number of the first shard: a second recorder beside the first"
    )
    parser.add_argument("--device", default="")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    starts = len(list(args.out.glob(f"start-{args.first}-*")))
    (args.out / f"start-{args.first}-{starts}").touch()
    shares = [share / sum(args.shares) for share in args.shares]
    context = multiprocessing.get_context("spawn")
    lines: multiprocessing.Queue = context.Queue(40)
    seed = args.seed + 1000 * starts
    readers = [
        context.Process(target=read, args=(i, args.text, lines, seed, shares), daemon=True) for i in range(args.readers)
    ]
    for reader in readers:
        reader.start()

    import torch
    from cast import Stage
    from kokoro import Kokoro

    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device.startswith("cuda")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = False
    torch.manual_seed(args.seed + starts)
    half = torch.float16 if on_gpu else torch.float32
    try:
        kokoro = Kokoro(args.kokoro, device, half, kernels=on_gpu)
        kokoro.back(kokoro.front([[0, 50, 83, 54, 16, 0]], ["af_heart"]) * 2, 64)
    except Exception as error:  # slower without, but a sitting must not end for it
        print("without kernels:", repr(error)[:300], flush=True)
        kokoro = Kokoro(args.kokoro, device, half)
    stage = Stage(kokoro, int(args.area_s * 40))
    shards: queue.Queue = queue.Queue(4)
    writer = threading.Thread(target=store, args=(shards, args.out), daemon=True)
    writer.start()
    own = [p for p in args.out.glob("shard-*.npz") if args.first <= int(p.stem.split("-")[1]) < args.first + 50_000]
    serial, began, made_s, said, held_s = len(own), time.monotonic(), 0.0, [], 0.0
    while not (args.out / "stop").exists() and made_s < args.hours * 3600:
        batch: list = []
        while len(batch) < args.at_once:
            try:
                batch += lines.get(timeout=5)
            except queue.Empty:
                if not all(reader.is_alive() for reader in readers):
                    raise SystemExit("Traceback: a reader has died, see above") from None
        for one in stage.speak(batch):
            said.append(one)
            held_s += len(one.audio) / 24000
            # The first ones are small, so that training can start.
            if held_s >= min(args.shard_s, args.shard_s / 6 * (1 + serial)):
                made_s += held_s
                shards.put((args.first + serial, said))
                spent = time.monotonic() - began
                print(
                    f"{serial}: {made_s / 3600:.2f} h after {spent:.0f} s, {made_s / spent:.0f} × real time", flush=True
                )
                said, held_s, serial = [], 0.0, serial + 1
    if said:
        shards.put((args.first + serial, said))
    shards.put(None)
    writer.join()


if __name__ == "__main__":
    main()
