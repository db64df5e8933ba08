"""Captured passes over slots, by a stand-in for CUDA's graphs, against streams marked alone without any of it."""

import logging
import shutil
import threading
import warnings

import numpy as np
import pytest
import torch
import yaml

from services.watermark import embedder as module
from services.watermark.embedder import Embedder
from services.watermark.graphs import PassGraphs
from services.watermark.key import PUBLIC_KEY
from services.watermark.level import FixedLevel, RunningLevel
from services.watermark.planner import MAX_PASS_COLUMNS
from services.watermark.weights import load_nets
from support.cuda_tape import CannotCapture, Tape
from support.watermark_pair import speech_like, stock_model

FRAME = 1920


@pytest.fixture(autouse=True)
def short_passes(monkeypatch):
    """EmbedPass of 3, 6 and 11 columns with `untrained`, of 5, 9 and 18 with `untrained_44k`: seconds, not minutes, to record."""
    monkeypatch.setattr(module, "_CHUNKS_S", (0.015, 0.03, 0.055, 0.1))


def captured(nets, **options):
    tape = Tape()
    embedder = Embedder(nets, PUBLIC_KEY, **{"level": RunningLevel(), "pad": True} | options)
    embedder.warm_up(tape)
    assert embedder.captured == tape.recorded > 3
    return embedder, tape


def alone(nets, clip, **options):
    return Embedder(nets, PUBLIC_KEY, **{"level": RunningLevel()} | options).embed(clip)


@pytest.mark.parametrize("nets", ["untrained", "untrained_44k"])
def test_streams_come_go_and_are_cancelled_in_replayed_passes(nets, request):
    """Twelve streams over five slots, pieces of any length, some cut off in the middle: the others notice nothing."""
    nets = request.getfixturevalue(nets)
    embedder, tape = captured(nets, slots=5)
    draw = np.random.default_rng(4)
    clips = [speech_like(draw.uniform(0.02, 0.5), seed=seed) for seed in range(12)]
    leaves = {2, 5, 7, 8}  # these are cancelled
    waiting, live, sent, marked = list(range(12)), {}, [0] * 12, [[] for _ in range(12)]
    while waiting or live:
        while waiting and len(live) < 5:
            live[waiting[0]] = embedder.open()
            waiting.pop(0)
        chosen = [index for index in live if draw.random() < 0.8]
        pieces = []
        for index in chosen:
            count = int(draw.choice([0, 1, 100, 777, FRAME, 2 * FRAME, 8 * FRAME]))
            piece = clips[index][sent[index] : sent[index] + count]
            ends = count > 0 and not len(piece)
            sent[index] += len(piece)
            pieces.append(None if ends else piece)
        results = embedder.advance([(live[index], piece) for index, piece in zip(chosen, pieces, strict=True)])
        for index, piece, result in zip(chosen, pieces, results, strict=True):
            marked[index].append(result)
            if piece is None:
                live.pop(index).close()
            elif index in leaves and sent[index] > len(clips[index]) // 2:
                live.pop(index).close()
    assert tape.replays > 12 and embedder.captured and embedder.state.reallocations == 0
    assert embedder.state.free == 5
    for index, (clip, parts) in enumerate(zip(clips, marked, strict=True)):
        expected, heard = alone(nets, clip), np.concatenate(parts)
        assert len(heard) == len(clip) or index in leaves
        assert np.abs(heard - expected[: len(heard)]).max(initial=0) < 1e-5
    assert sum(map(len, (np.concatenate(marked[index]) for index in leaves)))


@pytest.mark.parametrize(
    "sizes", [[FRAME], [FRAME, FRAME, 2 * FRAME, 4 * FRAME, 8 * FRAME], [777, 1, 0, 5000, 13]], ids=str
)
def test_no_stream_waits_for_more_than_its_look_ahead(untrained_44k, sizes):
    embedder, _ = captured(untrained_44k, slots=2)
    stream, clip = embedder.open(), speech_like(0.7)
    sent = given = turn = 0
    while sent < len(clip):
        piece = clip[sent : sent + sizes[turn % len(sizes)]]
        turn += 1
        sent += len(piece)
        given += len(stream.push(piece))
        assert sent - given <= embedder.lookahead_samples
    assert given + len(stream.finish()) == len(clip)


def test_captured_passes_equal_the_stock_encoder(untrained_files, tmp_path):
    """As test_embedder has it of plain passes: where the mark follows its own column, there is no difference."""
    paths = {role: tmp_path / path.name for role, path in untrained_files.items()}
    for role, path in untrained_files.items():
        shutil.copy(path, paths[role])
    table = yaml.safe_load(paths["hparams"].read_text())
    paths["hparams"].write_text(yaml.safe_dump(table | {"frame_level_normalization": True}))
    stock = stock_model(paths)
    stock.enc_c.eval()
    stock.dec_c.eval()
    draw = np.random.default_rng(5)
    clips = [(0.05 * draw.standard_normal(size)).astype(np.float32) for size in (24000, 9999, 20011)]
    levels = [float(np.mean(np.square(clip, dtype=np.float64))) for clip in clips]
    for index, (clip, level) in enumerate(zip(clips, levels, strict=True)):
        embedder, tape = captured(load_nets(paths), message_sdr_db=20, level=FixedLevel(level), slots=3)
        streams = [embedder.open() for _ in clips]
        heard = []
        for start in range(0, len(clip), FRAME):
            each = [(stream, other[start : start + FRAME]) for stream, other in zip(streams, clips, strict=True)]
            heard.append(embedder.advance(each)[index])
        heard.append(streams[index].finish())
        expected, _ = stock.encode_wav(clip.copy(), 24000, list(PUBLIC_KEY), message_sdr=20)
        assert np.abs(np.concatenate(heard) - expected).max() < 2e-4 * np.abs(expected - clip).max()
        assert tape.replays > 5


def test_more_streams_than_there_is_room_for_go_on_without_graphs(untrained, caplog):
    embedder, tape = captured(untrained, slots=2)
    clips = [speech_like(0.3, seed=seed) for seed in range(5)]
    streams = [embedder.open() for _ in clips]
    first = embedder.advance([(stream, clip[:4000]) for stream, clip in zip(streams[:2], clips, strict=False)])
    replays = tape.replays
    assert replays and not caplog.records
    first += embedder.advance([(stream, clip[:4000]) for stream, clip in zip(streams[2:], clips[2:], strict=True)])
    assert embedder.captured == 0 and tape.replays == replays
    assert "without graphs" in caplog.text and embedder.eager_passes > 0
    rest = embedder.advance([(stream, clip[4000:]) for stream, clip in zip(streams, clips, strict=True)])
    for clip, begun, more, stream in zip(clips, first, rest, streams, strict=True):
        assert np.abs(np.concatenate([begun, more, stream.finish()]) - alone(untrained, clip)).max() < 1e-5


def test_where_nothing_can_be_captured_marking_goes_on(untrained, caplog):
    def refuses(run):
        raise RuntimeError("no graphs on this driver")

    embedder = Embedder(untrained, PUBLIC_KEY, level=RunningLevel(), pad=True)
    with caplog.at_level(logging.WARNING):
        embedder.warm_up(refuses)
    assert embedder.captured == 0 and "no graphs on this driver" in caplog.text
    clip = speech_like(0.2)
    assert np.abs(embedder.embed(clip) - alone(untrained, clip)).max() < 1e-5


def test_the_stand_in_refuses_what_a_capture_refuses():
    numbers = torch.arange(5)
    for run in (lambda: numbers * int(numbers[2]), lambda: numbers[numbers > 2], lambda: numbers + torch.tensor([1])):
        with pytest.raises(CannotCapture):
            Tape()(run)


def test_a_pass_full_of_like_chunks_has_no_second_one(untrained_44k):
    """Whatever the chunks, what the service sends together fits one pass."""
    embedder, _ = captured(untrained_44k, slots=1)
    chunks = [round(chunk * 24000) for chunk in module._CHUNKS_S]
    together = [embedder.pass_samples // samples for samples in chunks]
    for samples, streams in zip(chunks, together, strict=True):
        columns = embedder.receptive_field.max_columns(samples)
        assert columns in embedder._buckets and streams * columns <= MAX_PASS_COLUMNS
    assert max(map(int.__mul__, together, embedder._buckets)) > MAX_PASS_COLUMNS * 0.9


def test_passes_are_for_what_streams_bring(untrained, monkeypatch):
    """Two columns' worth goes to a pass of three, not of one and one; twenty to one of 13 and one of 9, at once for all."""
    embedder, _ = captured(untrained, slots=4)
    columns = []
    run = PassGraphs.run
    monkeypatch.setattr(PassGraphs, "run", lambda self, host, k, n: columns.append((k, n)) or run(self, host, k, n))
    streams = [embedder.open() for _ in range(4)]
    clip = speech_like(0.5)
    hop = embedder.hparams.hop_length
    assert list(embedder._buckets) == [3, 6, 11, 19]
    embedder.advance([(stream, clip[: 2 * hop]) for stream in streams])
    embedder.advance([(stream, clip[2 * hop : 3 * hop + 5]) for stream in streams[:3]])
    embedder.advance([(stream, clip[2 * hop : 26 * hop]) for stream in streams[3:]])
    assert columns == [(3, 4), (3, 3), (19, 1), (6, 1)]


# What a stream is given back of its slot.


def held_passes(monkeypatch):
    """From now on a pass sets the first of these and waits for the second."""
    entered, goes_on = threading.Event(), threading.Event()
    run = PassGraphs.run

    def slow(self, *arguments):
        entered.set()
        assert goes_on.wait(30)
        return run(self, *arguments)

    monkeypatch.setattr(PassGraphs, "run", slow)
    return entered, goes_on


def test_a_slot_that_is_left_in_the_middle_of_a_pass_is_free_when_that_is_over(untrained, monkeypatch):
    embedder, _ = captured(untrained, slots=2)
    entered, goes_on = held_passes(monkeypatch)
    clips = [speech_like(0.3, seed=seed) for seed in range(3)]
    streams = [embedder.open() for _ in clips]
    heard = []
    passing = threading.Thread(
        target=lambda: heard.extend(embedder.advance([(streams[0], clips[0]), (streams[1], clips[1])]))
    )
    passing.start()
    try:
        assert entered.wait(30)
        streams[0].close()
        assert embedder.state.free == 0
    finally:
        goes_on.set()
        passing.join(30)
    assert embedder.state.free == 1
    streams[0].close()  # once more gives nothing back twice
    assert embedder.state.free == 1
    with pytest.raises(ValueError, match="closed"):
        streams[0].push(clips[0])
    third = np.concatenate([streams[2].push(clips[2]), streams[2].finish()])
    assert np.abs(third - alone(untrained, clips[2])).max() < 1e-5
    second = np.concatenate([heard[1], streams[1].finish()])
    assert np.abs(second - alone(untrained, clips[1])).max() < 1e-5
    assert embedder.captured and embedder.state.reallocations == 0


def test_a_new_stream_waits_for_a_slot_that_a_running_pass_gives_back(untrained, monkeypatch):
    """And what is captured stays good: no tensor is moved."""
    embedder, _ = captured(untrained, slots=1)
    entered, goes_on = held_passes(monkeypatch)
    clip, gone, late = speech_like(0.2), embedder.open(), embedder.open()
    heard = []
    threads = [threading.Thread(target=lambda: embedder.advance([(gone, clip)]))]
    threads.append(threading.Thread(target=lambda: heard.extend(embedder.advance([(late, clip)]))))
    threads[0].start()
    assert entered.wait(30)
    gone.close()
    threads[1].start()
    goes_on.set()
    for thread in threads:
        thread.join(30)
    assert embedder.state.reallocations == 0 and embedder.captured
    assert np.abs(np.concatenate([heard[0], late.finish()]) - alone(untrained, clip)).max() < 1e-5


@pytest.mark.parametrize("pad", [True, False])
def test_threads_mark_side_by_side(untrained, pad):
    embedder = (
        captured(untrained, slots=6)[0] if pad else Embedder(untrained, PUBLIC_KEY, level=RunningLevel(), slots=2)
    )
    clips = [speech_like(0.4, seed=seed) for seed in range(6)]
    heard = [None] * 6

    def mark(index):
        stream = embedder.open()
        parts = [stream.push(clips[index][start : start + FRAME]) for start in range(0, len(clips[index]), FRAME)]
        heard[index] = np.concatenate([*parts, stream.finish()])

    threads = [threading.Thread(target=mark, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for clip, got in zip(clips, heard, strict=True):
        assert np.abs(got - alone(untrained, clip)).max() < 1e-5


def test_a_caller_may_write_over_what_it_gave(untrained):
    embedder = Embedder(untrained, PUBLIC_KEY)
    clip, stream, heard = speech_like(0.2), embedder.open(), []
    piece = np.empty(50, np.float32)  # less than a column
    for start in range(0, len(clip), 50):
        piece[:] = clip[start : start + 50]
        heard.append(stream.push(piece))
    assert np.abs(np.concatenate([*heard, stream.finish()]) - alone(untrained, clip, level=FixedLevel())).max() < 1e-6


def test_samples_may_be_every_second_one_of_an_array_and_not_writable(untrained):
    embedder, clip = Embedder(untrained, PUBLIC_KEY), speech_like(0.2)
    wide = np.stack([clip, -clip], axis=1)
    fixed = np.frombuffer(clip.tobytes(), np.float32)
    for given in (wide[:, 0], fixed):
        assert np.array_equal(embedder.embed(given), embedder.embed(clip))


def test_looking_whether_samples_are_finite_is_quiet_and_exact(untrained):
    embedder = Embedder(untrained, PUBLIC_KEY)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        large, wrong = np.full(50, 3e38, np.float32), np.full(50, np.inf, np.float32)
        wrong[1::2] = -np.inf
        results = embedder.advance([(embedder.open(), large), (embedder.open(), wrong)])
    assert len(results[0]) == 0 and "finite" in str(results[1])
