"""Four speakers, each a voice of Kokoro, on whatever device there is.

hibari reads the text (both know the same 178 phonemes), Kokoro speaks it in batches. What it says is cut at the edges
and brought to one loudness on the device, as `voices.py` does it; its durations give the phoneme labels.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from kokoro import SAMPLE_RATE_HZ, UNIT_SAMPLES, Kokoro, Spoken
from torch import Tensor
from voices import FRAME_SAMPLES, LEAD_S, RMS, TAIL_S, Utterance

CAST = ("af_heart", "am_michael", "bf_emma", "bm_george")  # speakers 0 to 3
LONGEST_UNITS = 960  # 24 s
MOST_PHONEMES = 420
WIDTH_UNITS = 32  # batches are padded to multiples of this, so that few shapes occur
BLOCK = 240  # samples of the envelope that finds the edges


# Letters that are said one by one: hibari takes the A of "seven A M" for the article, that of "A.M." for the letter.
_LETTERS = re.compile(r"\b[A-Z](?: [A-Z])+\b")


class Reader:
    """Text to phoneme ids, by hibari's reading of American English; its model is not loaded."""

    def __init__(self) -> None:
        from hibari.g2p import G2P
        from hibari.tts import ASSETS, Hibari

        self.phonemes, self.sentences = G2P(british=False), Hibari.split_sentences
        self.vocabulary: dict[str, int] = json.loads(Path(ASSETS, "vocab.json").read_text())

    def ids(self, text: str) -> list[int] | None:
        """With a 0 at both ends; None when there is nothing to say or too much."""
        text = _LETTERS.sub(lambda letters: letters[0].replace(" ", ".") + ".", text)
        phonemes = " ".join(filter(None, map(self.phonemes, self.sentences(text))))
        ids = [0, *(self.vocabulary[p] for p in phonemes if p in self.vocabulary), 0]
        return ids if 3 < len(ids) <= MOST_PHONEMES else None


def finish(audio: Tensor, batch: list[Spoken]) -> list[tuple[np.ndarray, np.ndarray] | None]:
    """audio [B, S] as Kokoro gave it -> per utterance int16 [frames * 1920] and phones uint8 [frames * 2]."""
    device, b = audio.device, len(batch)
    valid = torch.tensor([one.length * UNIT_SAMPLES for one in batch], device=device)[:, None]
    at = torch.arange(audio.shape[1], device=device)
    audio = audio * (at < valid)
    envelope = audio.abs().unflatten(1, (-1, BLOCK)).amax(2)
    loud = (envelope > 0.02 * envelope.amax(1, keepdim=True)).int()
    first = loud.argmax(1) * BLOCK - int(LEAD_S * SAMPLE_RATE_HZ)
    last = (loud.shape[1] - loud.flip(1).argmax(1)) * BLOCK + int(TAIL_S * SAMPLE_RATE_HZ)
    first = (
        first.clamp(min=0).add(FRAME_SAMPLES // 2) // FRAME_SAMPLES * FRAME_SAMPLES
    )  # where Kokoro's phases are in step
    first, last = first[:, None], torch.minimum(last[:, None], valid)
    inside = (at >= first) & (at < last)
    audio = audio * inside
    audio = audio * (RMS / ((audio**2).sum(1, keepdim=True) / (last - first)).sqrt().clamp(min=1e-6))
    peak = audio.abs().amax(1, keepdim=True)
    sound = (peak[:, 0].isfinite() & (peak[:, 0] > 0.02)).cpu().numpy()
    audio = (audio / (peak / 0.95).clamp(min=1.0) * 32767).to(torch.int16).cpu().numpy()
    first, last = first[:, 0].cpu().numpy(), last[:, 0].cpu().numpy()
    out: list[tuple[np.ndarray, np.ndarray] | None] = []
    for i in range(b):
        frames = -(-(last[i] - first[i]) // FRAME_SAMPLES)
        if not sound[i] or last[i] - first[i] < SAMPLE_RATE_HZ // 4:
            out.append(None)
            continue
        clip = np.zeros(frames * FRAME_SAMPLES, np.int16)
        clip[: last[i] - first[i]] = audio[i, first[i] : last[i]]
        middles = np.minimum(first[i] + np.arange(frames * 2) * 960 + 480, last[i] - 1)
        ends = np.cumsum(batch[i].units.numpy()) * UNIT_SAMPLES
        out.append((clip, batch[i].ids.numpy().astype(np.uint8)[np.searchsorted(ends, middles, side="right")]))
    return out


class Stage:
    """Collects utterances of like length and speaks them together, `area_units` (width × batch) at a time."""

    def __init__(self, kokoro: Kokoro, area_units: int):
        self.kokoro, self.area = kokoro, area_units
        self.waiting: dict[int, list[Spoken]] = defaultdict(list)

    def speak(self, lines: list[tuple[str, int, list[int]]]) -> Iterator[Utterance]:
        """lines: (text, speaker, ids). Yields what has become ready, of these and of earlier lines."""
        lines = sorted(lines, key=lambda line: len(line[2]))
        spoken = self.kokoro.front([ids for *_, ids in lines], [CAST[s] for _, s, _ in lines], lines)
        for one in spoken:
            width = -(-one.length // WIDTH_UNITS) * WIDTH_UNITS
            if width > LONGEST_UNITS:
                continue
            self.waiting[width].append(one)
            if len(self.waiting[width]) >= max(1, self.area // width):
                yield from self._batch(width)

    def rest(self) -> Iterator[Utterance]:
        for width in list(self.waiting):
            yield from self._batch(width)

    def _batch(self, width: int) -> Iterator[Utterance]:
        batch = self.waiting.pop(width)
        for one, made in zip(batch, finish(self.kokoro.back(batch, width), batch), strict=True):
            if made:
                text, speaker, _ = one.key
                yield Utterance(text, speaker, *made)


class Teacher:
    """One utterance at a time, on a CPU: `voices.Teacher`, with these speakers."""

    def __init__(self, weights: Path, device: str = "cpu"):
        self.reader, self.stage = Reader(), Stage(Kokoro(weights, device), 1)

    def say(self, text: str, speaker: int, seed: int) -> Utterance | None:
        ids = self.reader.ids(text)
        if ids is None:
            return None
        torch.manual_seed(seed)
        return next(self.stage.speak([(text, speaker, ids)]), None)
