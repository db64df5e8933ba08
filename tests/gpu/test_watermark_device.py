"""Marking on a device: many streams in passes of few sizes, against each stream alone on the CPU.

Where there is no CUDA device the same test fills passes up on the CPU, which shows that the test holds.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from watermark_pair import speech_like

from services.watermark.embedder import Embedder
from services.watermark.hparams import Hparams
from services.watermark.kernels import PRECISIONS, operations_for, plain
from services.watermark.key import PUBLIC_KEY
from services.watermark.level import RunningLevel
from services.watermark.marker import Marker
from services.watermark.slots import Slots
from services.watermark.weights import load_nets, write_random

FRAME = 1920
SHAPE = Hparams(n_fft=512, hop_length=256, message_band_size=120, message_sdr_db=20.0)


@pytest.fixture(autouse=True)
def as_it_was():
    """An embedder on CUDA sets how cuDNN multiplies for the whole process."""
    before = torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_streams_that_come_and_go_are_marked_as_each_alone(tmp_path, device, precision):
    files = write_random(tmp_path, SHAPE, 1)
    embedder = Embedder(
        load_nets(files, device), PUBLIC_KEY, level=RunningLevel(), slots=2, fill=True, precision=precision
    )
    if device == "cuda":
        embedder.warm_up()
    alone = Embedder(load_nets(files), PUBLIC_KEY, level=RunningLevel(), precision=precision)
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
    near = 1e-5 if precision == "fp32" else 2e-3  # where sums differ in their last bits, roundings do
    for clip, parts in zip(clips, marked, strict=True):
        expected = alone.embed(clip)
        assert np.abs(np.concatenate(parts) - expected).max() < near * np.abs(expected - clip).max()


@pytest.mark.gpu
@pytest.mark.parametrize("precision", PRECISIONS)
def test_kernels_mark_as_their_twins_do(tmp_path, precision):
    """At the public model's widths: all streams of a pass, of the device's kernels and of its plain torch."""
    nets = load_nets(write_random(tmp_path, SHAPE, 1), "cuda")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    device, columns = torch.device("cuda"), 8
    makers = [Marker(nets, Slots(40, device), precision, each) for each in (operations_for(device), plain)]
    assert makers[0]._operations is not plain
    draw = torch.Generator("cuda").manual_seed(0)
    for _ in range(3):
        rows = torch.randperm(40, generator=draw, device=device)[:33]
        carrier = 50 * torch.rand(33, columns, SHAPE.rows, generator=draw, device=device)
        symbols = torch.randint(5, (33, columns), generator=draw, device=device)
        got, wanted = (maker.step(rows, carrier, symbols, None) for maker in makers)
        assert torch.isfinite(got).all()
        assert (got - wanted).norm() < (1e-5 if precision == "fp32" else 3e-3) * wanted.norm()
