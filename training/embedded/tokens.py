"""Turn speech shards into token shards with a finished codec encoder, as they appear.

Each utterance is encoded from a fresh start, as the services do with context audio. A token shard
holds rows ready for the generator: one per text byte, one per frame, one all-zero end frame. Ends when a file `stop`
appears among them.

    python tokens.py --speech /tmp/voice/speech --codec /tmp/voice/codec --out /tmp/voice/tokens
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import numpy as np
import torch
from codebooks import Codebooks
from codec import CODEBOOKS, FRAME_SAMPLES, latent, restored
from tokenizer import make, segment
from torch import Tensor

BATCH_SECONDS = 480
ROW = CODEBOOKS + 3  # codes, text id, two phoneme labels; -1 where a column says nothing


@torch.no_grad()
def encode(mimi, audio: Tensor, frames: np.ndarray, device: str, bf16: bool = False) -> list[np.ndarray]:
    """Codes int16 [frames, K] of every utterance in the strip `audio` int16 [samples]."""
    books = Codebooks(mimi)
    starts = np.concatenate([[0], np.cumsum(frames)])
    order, out, at = np.argsort(frames), [None] * len(frames), 0
    strip = audio.to(device)
    while at < len(order):
        # Sorted by length: a batch pads to its longest, rounded so that few shapes occur.
        size = max(1, int(BATCH_SECONDS / 0.08) // (-(-int(frames[order[min(at + 8, len(order) - 1)]]) // 16) * 16))
        chosen = order[at : at + size]
        width = -(-int(frames[chosen].max()) // 16) * 16
        size = max(1, int(BATCH_SECONDS / 0.08) // width)
        chosen = chosen[:size]
        at += len(chosen)
        index = torch.from_numpy(starts[chosen] * FRAME_SAMPLES).to(device)[:, None]
        inside = torch.arange(width * FRAME_SAMPLES, device=device)
        ends = torch.from_numpy(frames[chosen].astype(np.int64) * FRAME_SAMPLES).to(device)[:, None]
        batch = strip[(index + inside).clamp(max=len(strip) - 1)].float() / 32768 * (inside < ends)
        x = latent(mimi, batch[:, None])
        codes = books(x.float(), None, update=False)[3].transpose(1, 2).short().cpu().numpy()
        for i, utterance in enumerate(chosen):
            out[utterance] = codes[i, : frames[utterance]]
    return out


def rows(ids: list[int], codes: np.ndarray, phones: np.ndarray) -> np.ndarray:
    """One segment as int16 rows [text + frames + 1, ROW]."""
    count, frames = len(ids), len(codes)
    table = np.full((count + frames + 1, ROW), -1, np.int16)
    table[:count, CODEBOOKS] = ids
    table[count:-1, :CODEBOOKS] = codes
    table[-1, :CODEBOOKS] = 0
    table[count:-1, CODEBOOKS + 1 :] = phones.reshape(frames, 2)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speech", type=Path, required=True)
    parser.add_argument("--codec", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=1e9, help="give up waiting for new shards after this")
    parser.add_argument("--keep-hours", type=float, default=45, help="audio beyond this is deleted once encoded")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = False
    mimi = restored(args.codec / "mimi").to(args.device)
    tokenizer, began, hours = make(), time.monotonic(), 0.0
    while time.monotonic() - began < args.seconds and not (args.out / "stop").exists():
        fresh = [p for p in sorted(args.speech.glob("shard-*.npz")) if not (args.out / p.name).exists()]
        for path in fresh:
            with np.load(path) as shard:
                frames, speakers, texts = shard["frames"], shard["speakers"], str(shard["texts"]).split("\n")
                codes = encode(mimi, torch.from_numpy(shard["audio"]), frames, args.device)
                phones = np.split(shard["phones"], np.cumsum(frames)[:-1] * 2)
            segments = [
                rows(segment(tokenizer, int(speaker), text), c, p)
                for speaker, text, c, p in zip(speakers, texts, codes, phones, strict=True)
            ]
            draft = args.out / f".{path.name}"
            with open(draft, "wb") as file:
                np.savez(file, rows=np.concatenate(segments), lengths=np.array([len(s) for s in segments], np.int32))
            os.replace(draft, args.out / path.name)
            hours += frames.sum() * 0.08 / 3600
            print(f"{path.name} {hours:.2f} h after {time.monotonic() - began:.1f} s", flush=True)
            if hours > args.keep_hours:
                path.write_bytes(b"")
        if not fresh:
            time.sleep(1)


if __name__ == "__main__":
    main()
