"""The training speech on the device: one long strip of audio, growing while the teachers speak."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

SAMPLES_PER_LABEL = 960


class Bank:
    """audio int16 [capacity] and phones uint8 [capacity / 960], filled shard after shard.

    `filled` is a tensor on the device, so that a captured step sees new speech as it arrives.
    """

    def __init__(
        self,
        folder: Path,
        hours: float,
        device: str,
        change: Callable[[Tensor], Tensor] | None = None,
        held_out: int = 0,
    ):
        """change: what becomes of a shard's audio, int16 [S], before it is used. held_out: this many of the first shards
        are left out of the strip."""
        labels = int(hours * 3600 * 25)
        self.folder, self.device, self.change = folder, device, change
        self.audio = torch.zeros(labels * SAMPLES_PER_LABEL, dtype=torch.int16, device=device)
        self.phones = torch.zeros(labels, dtype=torch.uint8, device=device)
        self.filled = torch.zeros((), dtype=torch.int64, device=device)  # in labels
        self.labels, self.seen = 0, set()
        self.held_out = held_out

    def _shards(self) -> list[Path]:
        return sorted(self.folder.glob("shard-*.npz"))

    def examples(self, count: int, labels: int = 128) -> tuple[Tensor, Tensor, Tensor]:
        """Utterances of the shards that were held out, in full: audio [count, 1, labels * 960] with silence behind,
        phones [count, labels], and how many labels each has. Fewer where there are not as many of that length."""
        audio = torch.zeros(count, labels * SAMPLES_PER_LABEL)
        phones, ends = torch.zeros(count, labels, dtype=torch.int64), []
        for path in self._shards()[: self.held_out]:
            with np.load(path) as shard:
                sound, spoken, lengths = shard["audio"], shard["phones"], shard["frames"] * 2
            for start, length in zip(np.cumsum(lengths) - lengths, lengths, strict=True):
                if len(ends) < count and 32 <= length <= labels:
                    cut = sound[start * SAMPLES_PER_LABEL : (start + length) * SAMPLES_PER_LABEL]
                    audio[len(ends), : len(cut)] = torch.from_numpy(cut).float() / 32768
                    phones[len(ends), :length] = torch.from_numpy(spoken[start : start + length])
                    ends.append(int(length))
        n = len(ends)
        return audio[:n, None].to(self.device), phones[:n].to(self.device), torch.tensor(ends, dtype=torch.int64)

    def look(self, enough: float = float("inf")) -> bool:
        """Take in the shards that have appeared, `enough` labels at most; False once full."""
        for path in self._shards()[self.held_out :]:
            if path.name in self.seen or not path.stat().st_size:
                continue
            if self.labels >= enough:
                return True
            self.seen.add(path.name)
            with np.load(path) as shard:
                phones = torch.from_numpy(shard["phones"])
                audio = torch.from_numpy(shard["audio"])
            if self.labels + len(phones) > len(self.phones):
                return False
            if self.change is not None:
                audio = self.change(audio)
            self.phones[self.labels : self.labels + len(phones)].copy_(phones)
            at = self.labels * SAMPLES_PER_LABEL
            self.audio[at : at + len(audio)].copy_(audio)
            self.labels += len(phones)
            self.filled.fill_(self.labels)
        return True

    def wait_for(self, hours: float) -> None:
        """Raises: SystemExit when the file `stop` says that no more comes."""
        while self.labels < hours * 3600 * 25:
            self.look(hours * 3600 * 25)
            if self.labels < hours * 3600 * 25 and (self.folder / "stop").exists():
                raise SystemExit(f"no {hours} h of speech have come to {self.folder}")
            time.sleep(0.2)

    def watch(self) -> None:
        """Keep looking from a thread of its own."""

        def run() -> None:
            stream = torch.cuda.Stream() if self.device.startswith("cuda") else None
            with torch.cuda.stream(stream) if stream else torch.no_grad():
                while self.look():
                    time.sleep(2)

        threading.Thread(target=run, daemon=True).start()

    def crops(self, batch: int, labels: int) -> tuple[Tensor, Tensor]:
        """Random audio [batch, 1, labels * 960] float and its phones [batch, labels]."""
        starts = (torch.rand(batch, device=self.device, dtype=torch.float64) * (self.filled - labels - 2)).long()
        # Frames are two labels long: keep to their grid.
        starts = (starts // 2 * 2)[:, None]
        phones = self.phones[starts + torch.arange(labels, device=self.device)]
        samples = starts * SAMPLES_PER_LABEL + torch.arange(labels * SAMPLES_PER_LABEL, device=self.device)
        return self.audio[samples][:, None].float() / 32768, phones.long()
