"""Token rows of all utterances, packed into sequences of documents that do not see each other."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from tokens import ROW

LENGTH = 768  # 300 characters and their speech, or several turns
DOCUMENTS = 30  # of a sequence, its empty rest included
TURNS = (0.82, 0.12, 0.06)  # shares of documents of one, two and three segments


class Library:
    """All token rows, on the device; `batches` packs documents of utterances in fresh random order."""

    def __init__(self, folder: Path, device: str, batch: int, seed: int, capacity: int, shards: slice = slice(None)):
        """shards: which ones, by their names' order."""
        self.folder, self.device, self.batch, self.shards = folder, device, batch, shards
        self.rows = torch.full((capacity, ROW), -1, dtype=torch.int16, device=device)
        self.draw = np.random.default_rng(seed)
        self.used, self.seen = 0, set()
        self.starts, self.lengths = np.zeros(0, np.int64), np.zeros(0, np.int64)
        self.epochs = 0

    def look(self) -> None:
        for path in sorted(self.folder.glob("shard-*.npz"))[self.shards]:
            if path.name in self.seen:
                continue
            self.seen.add(path.name)
            with np.load(path) as shard:
                rows, lengths = torch.from_numpy(shard["rows"]), shard["lengths"].astype(np.int64)
            if self.used + len(rows) > len(self.rows):
                continue
            self.rows[self.used : self.used + len(rows)].copy_(rows)
            starts = self.used + np.concatenate([[0], np.cumsum(lengths)[:-1]])
            fits = lengths <= LENGTH
            self.starts = np.concatenate([self.starts, starts[fits]])
            self.lengths = np.concatenate([self.lengths, lengths[fits]])
            self.used += len(rows)

    def documents(self):
        """Endless: arrays of utterance numbers, one to three each, shuffled again when all were seen."""
        while True:
            self.look()
            order, at = self.draw.permutation(len(self.starts)), 0
            turns = self.draw.choice(3, len(order), p=TURNS) + 1
            began = time.monotonic()
            while at < len(order):
                group = order[at : at + turns[at]]
                while len(group) > 1 and self.lengths[group].sum() > LENGTH:
                    group = group[:-1]
                at += len(group)
                yield group
                if time.monotonic() - began > 45:  # new shards are waiting: start again over all
                    break
            self.epochs += 1

    def batches(self):
        """Endless: (row numbers int64 [B, LENGTH], document numbers int16 [B, LENGTH]; -1 is padding; where documents
        end, int32 [B * DOCUMENTS + 1])."""
        documents = self.documents()
        bins, room = [[] for _ in range(self.batch)], np.full(self.batch, LENGTH)
        missed, held = 0, []
        while True:
            group = held.pop() if held else next(documents)
            size = int(self.lengths[group].sum())
            fitting = np.flatnonzero(room >= size)
            if len(fitting):
                chosen = fitting[room[fitting].argmin()]
                bins[chosen].append(group)
                room[chosen] -= size
                if len(bins[chosen]) == DOCUMENTS - 1:
                    room[chosen] = 0
                continue
            missed += 1
            later = [group]
            if missed < 24:  # look a little further for something that fits
                self.waiting = getattr(self, "waiting", []) + later
                continue
            index = np.full((self.batch, LENGTH), -1, np.int64)
            marks = np.full((self.batch, LENGTH), -1, np.int16)
            ends = np.full(self.batch * DOCUMENTS + 1, self.batch * LENGTH, np.int32)
            found = [0]
            for b, groups in enumerate(bins):
                at = 0
                for number, members in enumerate(groups):
                    for utterance in members:
                        size = self.lengths[utterance]
                        index[b, at : at + size] = np.arange(self.starts[utterance], self.starts[utterance] + size)
                        marks[b, at : at + size] = number
                        at += size
                    found.append(b * LENGTH + at)
                found.append((b + 1) * LENGTH)
            ends[: len(found)] = found
            yield index, marks, ends
            held = [*self.waiting, group]
            self.waiting, missed = [], 0
            bins, room = [[] for _ in range(self.batch)], np.full(self.batch, LENGTH)
