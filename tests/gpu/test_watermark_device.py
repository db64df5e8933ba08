"""Marking on a device: many streams in passes of few sizes, against each stream alone on the CPU.

Where there is no CUDA device the same test fills passes up on the CPU, which shows that the test holds.
"""

from __future__ import annotations

import numpy as np
import pytest
from watermark_pair import speech_like

from services.watermark.embedder import Embedder
from services.watermark.hparams import Hparams
from services.watermark.key import PUBLIC_KEY
from services.watermark.level import RunningLevel
from services.watermark.weights import load_nets, write_random

FRAME = 1920
SHAPE = Hparams(n_fft=512, hop_length=256, message_band_size=120, message_sdr_db=20.0)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_streams_that_come_and_go_are_marked_as_each_alone(tmp_path, device):
    files = write_random(tmp_path, SHAPE, 1)
    embedder = Embedder(load_nets(files, device), PUBLIC_KEY, level=RunningLevel(), slots=2, fill=True)
    if device == "cuda":
        embedder.warm_up()
    alone = Embedder(load_nets(files), PUBLIC_KEY, level=RunningLevel())
    draw = np.random.default_rng(0)
    clips = [speech_like(draw.uniform(0.1, 0.7), seed=seed) for seed in range(7)]
    streams, marked, sent = [embedder.open() for _ in clips], [[] for _ in clips], [0] * len(clips)
    live, turn = list(range(len(clips))), 0
    while live:
        turn += 1
        chosen = [index for index in live if index <= turn and draw.random() < 0.7]  # they begin one after the other
        pieces = []
        for index in chosen:
            piece = clips[index][sent[index] : sent[index] + FRAME * int(draw.choice([1, 1, 2, 4]))]
            sent[index] += len(piece)
            pieces.append(piece if len(piece) else None)
        results = embedder.advance([(streams[index], piece) for index, piece in zip(chosen, pieces, strict=True)])
        for index, piece, result in zip(chosen, pieces, results, strict=True):
            marked[index].append(result)
            if piece is None:
                live.remove(index)
                streams[index] = None
    near = 1e-5 if device == "cpu" else 2e-2  # convolutions are in TF32
    for clip, parts in zip(clips, marked, strict=True):
        expected = alone.embed(clip)
        assert np.abs(np.concatenate(parts) - expected).max() < near * np.abs(expected - clip).max()
