"""Choose among several takes of one text the one that the codec keeps clearest.

The codec has 80 bits for a frame, and a word without context shows it: of 60 short answers the acceptance's recogniser
hears 59 from the teacher and 52 from the codec. Which ones are lost depends on where in its frames a sound lies. So
`recorder.py --takes` says a short text several times, and what a listener makes of each through the codec decides. The
listener is the codec's own (`listener.py`), trained here on the teacher's speech alone; the acceptance's recogniser has no say.

    python takes.py --speech WORK/speech --out WORK/listener.pt --seconds 40
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path

import numpy as np
import torch
from generator import KINDS
from listener import LABEL_SAMPLES, Listener
from torch import Tensor
from torch.nn import functional as F

CROP_S = 1.28
SIGNS = frozenset(range(17)) | {156, 157}  # phoneme ids that are no sounds: pauses, punctuation, stress


class Crops:
    """Random crops of the shards in a folder, on the device."""

    def __init__(self, folder: Path, device: str, shards: int):
        self.folder, self.device, self.most, self.seen = folder, device, shards, set()
        self.audio: list[Tensor] = []
        self.phones: list[Tensor] = []

    def look(self) -> float:
        """Take up new shards. Returns how many hours there are."""
        for path in sorted(self.folder.glob("shard-*.npz")):
            if path.name in self.seen or len(self.seen) >= self.most:
                continue
            self.seen.add(path.name)
            with np.load(path) as shard:
                self.audio.append(torch.from_numpy(shard["audio"]).to(self.device))
                self.phones.append(torch.from_numpy(shard["phones"]).to(self.device))
        return sum(map(len, self.audio)) / 24000 / 3600

    def draw(self, batch: int, noise: np.random.Generator) -> tuple[Tensor, Tensor]:
        """audio float32 [B, 1, S], phones int64 [B, S / 960]."""
        labels = int(CROP_S * 24000) // LABEL_SAMPLES
        which = int(noise.integers(len(self.audio)))
        audio, phones = self.audio[which], self.phones[which]
        starts = torch.from_numpy(noise.integers(0, len(phones) - labels, batch)).to(self.device)[:, None]
        at = starts * LABEL_SAMPLES + torch.arange(labels * LABEL_SAMPLES, device=self.device)
        levels = 10 ** (torch.rand(batch, 1, device=self.device) * 0.6 - 0.3)
        sound = audio[at].float() / 32768 * levels
        return sound[:, None], phones[starts + torch.arange(labels, device=self.device)].long()


def train(args: argparse.Namespace) -> Listener:
    crops, noise = Crops(args.speech, args.device, args.shards), np.random.default_rng(0)
    torch.manual_seed(0)
    listener = Listener(KINDS).to(args.device)
    while crops.look() < args.least_hours:
        time.sleep(0.5)
    optimizer = torch.optim.AdamW(listener.parameters(), lr=args.peak, betas=(0.8, 0.98), weight_decay=0.01)
    began, step = time.monotonic(), 0
    while (spent := (time.monotonic() - began) / args.seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = args.peak * min(1, (step + 1) / 100) * (1 - 0.98 * spent)
        audio, phones = crops.draw(args.batch, noise)
        logits, _ = listener(audio, noisy=True)
        loss = F.cross_entropy(logits.flatten(0, 1), phones.flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        step += 1
        if step % args.report == 0:
            hours = crops.look()
            print(f"{step}: {loss.item():.3f}, {hours:.2f} h after {time.monotonic() - began:.0f} s", flush=True)
    return listener


def clearness(known: np.ndarray, phones: np.ndarray) -> float:
    """known: a listener's log-probability of each label in phones. The mean over sounds, the worst one once more.

    A sound that lasts for several labels is one; pauses do not count.
    """
    edges = np.flatnonzero(np.diff(phones.astype(int))) + 1
    each = [known[at].mean() for at in np.split(np.arange(len(phones)), edges) if phones[at[0]] not in SIGNS]
    return float(np.mean(each) + min(each)) if each else -np.inf


def clearest(takes: np.ndarray, scores: list[float]) -> list[int]:
    """takes: of each utterance its number among those of one text, which lie behind one another -> the best of each text."""
    starts = [0, *(i for i in range(1, len(takes)) if takes[i] <= takes[i - 1]), len(takes)]
    return [max(range(a, b), key=scores.__getitem__) for a, b in itertools.pairwise(starts)]


def load(path: Path, device: str) -> Listener:
    listener = Listener(KINDS).to(device)
    listener.load_state_dict(torch.load(path, map_location=device))
    return listener.eval().requires_grad_(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speech", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=40)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--peak", type=float, default=2e-3)
    parser.add_argument("--least-hours", type=float, default=0.5)
    parser.add_argument("--shards", type=int, default=60, help="so many are enough")
    parser.add_argument("--report", type=int, default=200)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.backends.cudnn.benchmark = False
    listener = train(args)
    draft = args.out.with_name(f".{args.out.name}")
    torch.save(listener.state_dict(), draft)
    draft.replace(args.out)


if __name__ == "__main__":
    main()
