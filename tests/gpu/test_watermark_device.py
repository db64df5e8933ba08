"""Marking on a device: many streams in passes of few sizes, against each stream alone on the CPU.

On CUDA passes are replayed graphs. Where there is no such device the first test fills passes up on the CPU, which
shows that the test holds; tests/unit/watermark/test_graphs.py has a stand-in for graphs.
"""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from services.watermark.embedder import Embedder
from services.watermark.hparams import Hparams
from services.watermark.kernels import PRECISIONS, operations_for, plain
from services.watermark.key import PUBLIC_KEY
from services.watermark.level import RunningLevel
from services.watermark.marker import Marker
from services.watermark.state_pool import StatePool
from services.watermark.weights import load_nets, write_random
from support.watermark_pair import speech_like

FRAME = 1920
SHAPE = Hparams(n_fft=512, hop_length=256, message_band_size=120, message_sdr_db=20.0)


@pytest.fixture(autouse=True)
def as_it_was():
    """An embedder on CUDA sets how cuDNN multiplies for the whole process."""
    before = torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cudnn.allow_tf32 = before


class Callers:
    """Streams that begin one after another, bring pieces of any length, and of whom some leave in the middle."""

    def __init__(self, count: int, leave: set[int]):
        self._draw = np.random.default_rng(0)
        self.clips = [speech_like(self._draw.uniform(0.1, 0.7), seed=seed) for seed in range(count)]
        self._leave = leave

    def marked_by(self, embedder: Embedder) -> list[np.ndarray]:
        """What each hears."""
        draw, clips = np.random.default_rng(1), self.clips
        streams, sent = [embedder.open() for _ in clips], [0] * len(clips)
        heard: list[list[np.ndarray]] = [[] for _ in clips]
        live, turn = list(range(len(clips))), 0
        while live:
            turn += 1
            chosen = [index for index in live if index <= turn and draw.random() < 0.7]
            pieces = []
            for index in chosen:
                count = int(draw.choice([1, 700, FRAME, FRAME, 2 * FRAME, 4 * FRAME, 8 * FRAME]))
                piece = clips[index][sent[index] : sent[index] + count]
                sent[index] += len(piece)
                pieces.append(piece if len(piece) else None)
            results = embedder.advance([(streams[index], piece) for index, piece in zip(chosen, pieces, strict=True)])
            for index, piece, result in zip(chosen, pieces, results, strict=True):
                heard[index].append(result)
                if piece is None or (index in self._leave and sent[index] > len(clips[index]) // 2):
                    live.remove(index)
                    streams[index].close()
        return [np.concatenate(parts) for parts in heard]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_streams_that_come_go_and_leave_are_marked_as_each_alone(tmp_path, device, precision):
    files, callers = write_random(tmp_path, SHAPE, 1), Callers(9, leave={2, 5})
    embedder = Embedder(
        load_nets(files, device), PUBLIC_KEY, level=RunningLevel(), slots=9, pad=True, precision=precision
    )
    if device == "cuda":
        embedder.warm_up()
        assert embedder.captured > 12
    heard = callers.marked_by(embedder)
    assert embedder.state.free == 9 and embedder.state.reallocations == 0
    assert device == "cpu" or embedder.captured > 12
    near = 1e-5 if precision == "fp32" else 2e-3  # where sums differ in their last bits, roundings do
    alone = Embedder(load_nets(files), PUBLIC_KEY, level=RunningLevel(), precision=precision)
    for index, (clip, got) in enumerate(zip(callers.clips, heard, strict=True)):
        expected = alone.embed(clip)
        assert len(got) == len(clip) or index in (2, 5)
        wrong = np.abs(got - expected[: len(got)]).max(initial=0)
        assert wrong < near * np.abs(expected - clip).max()


@pytest.mark.gpu
@pytest.mark.parametrize("precision", PRECISIONS)
def test_replays_are_what_they_were_captured_from(tmp_path, precision):
    """The same passes, launched one kernel after another; and by threads side by side on one embedder."""
    nets, callers = load_nets(write_random(tmp_path, SHAPE, 1), "cuda"), Callers(6, leave={1})
    options = {"level": RunningLevel(), "slots": 18, "precision": precision}
    captured, plain_passes = (Embedder(nets, PUBLIC_KEY, **options, graphs=graphs) for graphs in (True, False))
    captured.warm_up()
    plain_passes.warm_up()
    assert captured.captured and not plain_passes.captured
    expected = callers.marked_by(plain_passes)
    threads_heard: list[list[np.ndarray]] = []
    threads = [threading.Thread(target=lambda: threads_heard.append(callers.marked_by(captured))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(threads_heard) == 3 and captured.captured and captured.state.free == 18
    near = 1e-5 if precision == "fp32" else 2e-3
    for heard in [callers.marked_by(captured), *threads_heard]:
        for clip, got, wanted in zip(callers.clips, heard, expected, strict=True):
            assert np.abs(got - wanted).max() < near * np.abs(wanted - clip[: len(wanted)]).max()


@pytest.mark.gpu
def test_more_streams_than_there_is_room_for_are_marked_without_graphs(tmp_path):
    nets, callers = load_nets(write_random(tmp_path, SHAPE, 1), "cuda"), Callers(5, leave=set())
    embedder = Embedder(nets, PUBLIC_KEY, level=RunningLevel(), slots=2, precision="fp32")
    embedder.warm_up()
    assert embedder.captured
    heard = callers.marked_by(embedder)
    assert not embedder.captured
    alone = Embedder(nets, PUBLIC_KEY, level=RunningLevel(), slots=2, precision="fp32")
    for clip, got in zip(callers.clips, heard, strict=True):
        expected = alone.embed(clip)
        assert np.abs(got - expected).max() < 1e-5 * np.abs(expected - clip).max()


@pytest.mark.gpu
@pytest.mark.parametrize("precision", PRECISIONS)
def test_kernels_mark_as_their_twins_do(tmp_path, precision):
    """At the public model's widths: all streams of a pass, of the device's kernels and of its plain torch."""
    nets = load_nets(write_random(tmp_path, SHAPE, 1), "cuda")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    device, columns = torch.device("cuda"), 8
    makers = [Marker(nets, StatePool(40, device), precision, each) for each in (operations_for(device), plain)]
    assert makers[0]._operations is not plain
    draw = torch.Generator("cuda").manual_seed(0)
    for _ in range(3):
        rows = torch.randperm(40, generator=draw, device=device)[:33]
        carrier = 50 * torch.rand(33, columns, SHAPE.rows, generator=draw, device=device)
        symbols = torch.randint(5, (33, columns), generator=draw, device=device)
        counts = torch.randint(1, columns + 1, (33,), generator=draw, device=device)
        got, wanted = (maker.step(rows, carrier, symbols, None, counts) for maker in makers)
        assert torch.isfinite(got).all()
        assert (got - wanted).norm() < (1e-5 if precision == "fp32" else 3e-3) * wanted.norm()
