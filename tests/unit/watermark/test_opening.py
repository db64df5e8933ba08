"""Streams whose first samples are marked before their look-ahead has come."""

import gc
import shutil

import numpy as np
import pytest
import yaml

from services.watermark.embedder import Embedder
from services.watermark.key import PUBLIC_KEY
from services.watermark.level import FixedLevel, RunningLevel
from services.watermark.opening import FADE_S, Opening
from services.watermark.weights import load_nets
from support.watermark_pair import speech_like, stock_model

FRAME = 1920  # samples of one Mimi frame, 80 ms
FADE = round(FADE_S * 24000)
CUTS = {
    "1 frame": [FRAME], "3 frames": [3 * FRAME], "ramp": [FRAME, FRAME, 2 * FRAME, 4 * FRAME], "whole": [1 << 20],
    "odd": [777, 1, 0, 5000, 13],
}  # fmt: skip


def pieces(embedder, samples, cuts):
    """What a stream gives for each piece, and at its end."""
    opened, out, sent, index = embedder.open(), [], 0, 0
    while sent < len(samples):
        piece = samples[sent : sent + cuts[index % len(cuts)]]
        index += 1
        sent += len(piece)
        out.append(opened.push(piece))
    return [*out, opened.finish()]


CASES = [("untrained", pad, cuts) for pad in (False, True) for cuts in CUTS] + [("untrained_44k", True, "ramp")]


@pytest.mark.parametrize(("nets", "pad", "cuts"), CASES)
def test_it_is_the_mark_of_a_clip_of_its_length_and_what_follows_is_as_without(nets, pad, cuts, request):
    nets, samples = request.getfixturevalue(nets), speech_like(0.8, seed=3)[:17001]
    plain = Embedder(nets, PUBLIC_KEY, level=RunningLevel(), pad=pad)
    opening = Embedder(nets, PUBLIC_KEY, level=RunningLevel(), pad=pad, opening_s=0.08)
    got, without = np.concatenate(pieces(opening, samples, CUTS[cuts])), plain.embed(samples)
    clip = plain.embed(samples[:FRAME])
    assert len(got) == len(samples)
    assert np.abs(clip - without[:FRAME]).max() > 1e-4  # the two differ at all
    assert np.abs(got[: FRAME - FADE] - clip[: FRAME - FADE]).max() < 1e-6
    assert np.abs(got[FRAME:] - without[FRAME:]).max() < 1e-6
    low, high = np.minimum(clip, without[:FRAME]), np.maximum(clip, without[:FRAME])
    fade = slice(FRAME - FADE, FRAME)
    assert (got[fade] >= low[fade] - 1e-6).all() and (got[fade] <= high[fade] + 1e-6).all()
    assert np.abs(got[fade] - clip[fade]).max() > 1e-6 and np.abs(got[fade] - without[fade]).max() > 1e-6


def test_it_equals_the_stock_encoder_of_such_a_clip(untrained_files, tmp_path):
    paths = {role: tmp_path / path.name for role, path in untrained_files.items()}
    for role, path in untrained_files.items():
        shutil.copy(path, paths[role])
    table = yaml.safe_load(paths["hparams"].read_text()) | {"frame_level_normalization": True}
    paths["hparams"].write_text(yaml.safe_dump(table))
    stock = stock_model(paths)
    stock.enc_c.eval()
    stock.dec_c.eval()
    samples = (0.05 * np.random.default_rng(5).standard_normal(9 * FRAME)).astype(np.float32)
    first = samples[:FRAME]
    expected, _ = stock.encode_wav(first.copy(), 24000, list(PUBLIC_KEY), message_sdr=20)
    level = FixedLevel(float(np.mean(np.square(first, dtype=np.float64))))
    embedder = Embedder(load_nets(paths), PUBLIC_KEY, message_sdr_db=20, level=level, opening_s=0.08)
    head = embedder.open().push(samples)[: FRAME - FADE]
    assert np.abs(head - expected[: FRAME - FADE]).max() < 2e-4 * np.abs(expected - first).max()


@pytest.mark.parametrize("pad", [False, True], ids=["eager", "padded"])
def test_its_samples_come_with_the_last_of_them_and_nothing_then_waits_longer(untrained_44k, pad):
    embedder = Embedder(untrained_44k, PUBLIC_KEY, pad=pad, opening_s=0.08)
    samples = speech_like(1.0)
    given = np.cumsum([len(piece) for piece in pieces(embedder, samples, [FRAME // 2])])
    assert embedder.first_samples == FRAME
    assert given[0] == 0 and given[1] == FRAME - FADE
    held = np.arange(1, len(given)) * (FRAME // 2) - given[:-1]
    assert max(held) <= embedder.lookahead_samples + FRAME // 2
    assert given[-1] == len(samples)


@pytest.mark.parametrize("count", [1, 700, FRAME - 1])
def test_a_clip_shorter_than_the_opening_is_marked_as_without(untrained, count):
    samples = speech_like(0.2)[:count]
    got = np.concatenate(pieces(Embedder(untrained, PUBLIC_KEY, opening_s=0.08), samples, [500]))
    assert np.abs(got - Embedder(untrained, PUBLIC_KEY).embed(samples)).max() < 1e-6


def test_streams_that_begin_together_and_later_are_each_as_alone(untrained):
    embedder = Embedder(untrained, PUBLIC_KEY, pad=True, opening_s=0.08, slots=2)
    clips = [speech_like(0.6, seed=seed) for seed in range(4)]
    alone = [np.concatenate(pieces(embedder, clip, [FRAME])) for clip in clips]
    streams, given = [embedder.open() for _ in clips], [[] for _ in clips]
    for step in range(-(-len(clips[0]) // FRAME) + 3):
        items = []
        for number, (stream, clip) in enumerate(zip(streams, clips, strict=True)):
            begin = (step - max(0, number - 1)) * FRAME
            if 0 <= begin < len(clip):
                items.append((number, (stream, clip[begin : begin + FRAME])))
        for (number, _), marked in zip(items, embedder.advance([item for _, item in items]), strict=True):
            given[number].append(marked)
    for number, marked in enumerate(embedder.advance([(stream, None) for stream in streams])):
        assert np.abs(np.concatenate([*given[number], marked]) - alone[number]).max() < 1e-6


def test_a_stream_goes_on_from_a_checkpoint_beyond_it(untrained):
    embedder = Embedder(untrained, PUBLIC_KEY, level=RunningLevel(), opening_s=0.25)
    samples, stream, points = speech_like(0.8), embedder.open(), []
    marked = []
    for begin in range(0, len(samples), FRAME):
        marked.append(stream.push(samples[begin : begin + FRAME]))
        points.append(stream.checkpoint)
    whole = np.concatenate([*marked, stream.finish()])
    known = [point for point in points if point is not None]
    plain = Embedder(untrained, PUBLIC_KEY)
    early = next(point for columns in range(200) if (point := plain.checkpoint(columns, 0.0)) is not None)
    assert early.first_marked_sample < embedder.opening_samples  # so there would be one that lies within it
    assert known and all(point.first_marked_sample >= embedder.opening_samples for point in known)
    for point in [each for each in known if each.first_marked_sample < len(samples)][::3]:
        resumed = embedder.open_at(point.first_sample, point.first_marked_sample, point.columns, point.power_sum)
        rest = np.concatenate([resumed.push(samples[point.first_sample :]), resumed.finish()])
        assert np.abs(rest - whole[point.first_marked_sample :]).max() < 1e-6


def test_a_mark_that_is_not_finite_is_refused_in_the_opening_too(untrained):
    given = []
    opening = Opening(0, np.zeros(10, np.float32), 4, lambda marked, finite: given.append((len(marked), finite)))
    opening.append_marked(np.zeros(7, np.float32), False)
    assert not given
    opening.append_marked(np.zeros(3, np.float32), True)
    assert given == [(6, False)]


def test_a_stream_that_is_dropped_in_its_opening_frees_its_slot_at_once(untrained):
    embedder = Embedder(untrained, PUBLIC_KEY, opening_s=0.08)
    free, stream = embedder.state.free, embedder.open()
    gc.disable()
    try:
        assert len(stream.push(speech_like(0.2)[:FRAME])) == FRAME - FADE and embedder.state.free == free - 1
        del stream
        assert embedder.state.free == free
    finally:
        gc.enable()


@pytest.mark.parametrize("opening_s", [-0.01, 1.01])
def test_a_length_out_of_bounds_is_refused(untrained, opening_s):
    with pytest.raises(ValueError, match="opening_s"):
        Embedder(untrained, PUBLIC_KEY, opening_s=opening_s)
