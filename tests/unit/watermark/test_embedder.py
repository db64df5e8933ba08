import shutil
from dataclasses import asdict, astuple

import numpy as np
import pytest
import torch
import yaml

from services.watermark.embedder import Embedder
from services.watermark.key import PUBLIC_KEY
from services.watermark.level import FixedLevel, RunningLevel
from services.watermark.marker import Marker
from services.watermark.planner import OPEN_LENGTH
from services.watermark.state_pool import StatePool
from services.watermark.weights import load_nets
from support.watermark_pair import speech_like, stock_model

FRAME = 1920  # samples of one Mimi frame, 80 ms
CUTS = {
    "1 frame": [FRAME], "2 frames": [2 * FRAME], "3 frames": [3 * FRAME], "7 frames": [7 * FRAME],
    "ramp": [FRAME, FRAME, 2 * FRAME, 4 * FRAME, 8 * FRAME], "odd": [777, 1, 0, 5000, 13],
}  # fmt: skip


def stream(embedder, samples, cuts):
    """What a stream gives when fed in pieces, and the most it ever held back."""
    opened, out, sent, held, index = embedder.open(), [], 0, 0, 0
    while sent < len(samples):
        piece = samples[sent : sent + cuts[index % len(cuts)]]
        index += 1
        sent += len(piece)
        out.append(opened.push(piece))
        held = max(held, sent - sum(map(len, out)))
    out.append(opened.finish())
    return np.concatenate(out), held


@pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("level", [FixedLevel(), RunningLevel()], ids=["fixed", "running"])
@pytest.mark.parametrize("nets", ["untrained", "untrained_44k"])
def test_streamed_equals_whole(nets, level, cuts, request):
    samples = speech_like(1.55, seed=3)[:37001]
    embedder = Embedder(request.getfixturevalue(nets), PUBLIC_KEY, level=level)
    whole = embedder.embed(samples)
    streamed, held = stream(embedder, samples, cuts)
    assert len(streamed) == len(whole) == len(samples)
    assert np.abs(whole - samples).max() > 1e-3  # there is a mark at all
    assert np.abs(streamed - whole).max() < 1e-6
    assert held <= embedder.lookahead_samples


@pytest.mark.parametrize("nets", ["untrained", "untrained_44k"])
def test_lookahead_is_as_short_as_stated(nets, request):
    embedder = Embedder(request.getfixturevalue(nets), PUBLIC_KEY)
    _, held = stream(embedder, speech_like(0.3), [1])
    assert embedder.lookahead_samples - 4 <= held <= embedder.lookahead_samples


def test_lookahead_of_the_public_model_is_375_ms():
    # 8 hops of 2048 at 44.1 kHz are 371.5 ms; the resamplers add the rest.
    from services.watermark.hparams import Hparams
    from services.watermark.weights import build_nets

    embedder = Embedder(build_nets(Hparams()), PUBLIC_KEY)
    assert embedder.lookahead_samples / 24 == pytest.approx(375, abs=0.5)


@pytest.mark.parametrize(("normalization", "share"), [("frame", 2e-4), ("utterance", 1e-2)])
def test_equals_the_stock_encoder_in_eval_mode(untrained_files, tmp_path, normalization, share):
    # The two differ by nothing where the mark is in proportion to its own column. Where it follows the
    # clip, the stock takes the mean over the clip's cells, padding included, and we what it tends to.
    paths = {role: tmp_path / path.name for role, path in untrained_files.items()}
    for role, path in untrained_files.items():
        shutil.copy(path, paths[role])
    table = yaml.safe_load(paths["hparams"].read_text())
    table.update(frame_level_normalization=normalization == "frame")
    paths["hparams"].write_text(yaml.safe_dump(table))
    stock = stock_model(paths)
    stock.enc_c.eval()
    stock.dec_c.eval()
    samples = (0.05 * np.random.default_rng(5).standard_normal(48000)).astype(np.float32)
    expected, _ = stock.encode_wav(samples.copy(), 24000, list(PUBLIC_KEY), message_sdr=20)
    level = FixedLevel(float(np.mean(np.square(samples, dtype=np.float64))))
    ours = Embedder(load_nets(paths), PUBLIC_KEY, message_sdr_db=20, level=level).embed(samples)
    assert np.abs(ours - expected).max() < share * np.abs(expected - samples).max()


def test_folded_nets_equal_the_stock_modules(untrained):
    shape = untrained.hparams
    assert shape.rows < shape.bins  # the saved bins matter here
    torch.manual_seed(0)
    columns = 30
    carrier = torch.rand(1, 1, shape.bins, columns)
    symbols = torch.randint(0, 5, (1, columns))
    one_hot = torch.nn.functional.one_hot(symbols, 5).float().transpose(1, 2)[:, None]
    message = untrained.enc_c.transform_message(one_hot)
    merged = torch.cat([untrained.enc_c(carrier), carrier.repeat(1, 32, 1, 1), message.repeat(1, 32, 1, 1)], dim=1)
    expected = untrained.dec_c(merged, 0.0)[0, 0]
    marker = Marker(untrained, StatePool(1, torch.device("cpu")))
    [got] = marks_of(
        marker,
        untrained.hparams.context_columns,
        [carrier[0, 0, : shape.rows].T],
        symbols,
        [columns + shape.context_columns],
    )
    assert not marker._layers[shape.enc_n_layers].weight[:, 34:].any()
    assert torch.all(expected[shape.message_band_size :] == 0)
    assert (got.T - expected[: shape.message_band_size]).abs().max() < 1e-4


def marks_of(marker, reach, carriers, symbols, cuts):
    """Marks [columns, band] of streams with carriers [columns, rows], all fed by the same cuts."""
    columns, rows = len(carriers[0]), torch.arange(len(carriers))
    carrier = torch.nn.functional.pad(torch.stack(carriers), (0, 0, 0, reach), value=9.0)  # what follows is no matter
    symbols = torch.nn.functional.pad(symbols, (0, reach))
    place, marks = 0, []
    for count in cuts:
        index = torch.arange(place, place + count).expand(len(carriers), -1)

        def valid(behind, index=index):
            return (index >= behind) & (index < columns + behind)

        marks.append(marker.step(rows, carrier[:, index[0]], symbols[:, index[0]], valid))
        place += count
    assert place == columns + reach
    return torch.cat(marks, dim=1)[:, reach:]


def test_two_streams_in_one_pass_are_each_as_alone_and_as_whole(untrained):
    shape = untrained.hparams
    carriers, symbols = torch.rand(2, 40, shape.rows), torch.randint(0, 5, (2, 40))
    both = marks_of(
        Marker(untrained, StatePool(2, torch.device("cpu"))),
        shape.context_columns,
        list(carriers),
        symbols,
        [3, 17, 20, shape.context_columns],
    )
    for index in range(2):
        marker = Marker(untrained, StatePool(1, torch.device("cpu")))
        [alone] = marks_of(
            marker, shape.context_columns, [carriers[index]], symbols[index : index + 1], [40 + shape.context_columns]
        )
        assert (both[index] - alone).abs().max() < 1e-5


@pytest.mark.parametrize("files", ["pair_files", "pair_44k_files"])
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_the_stock_decoder_reads_our_mark_as_it_reads_the_stock_encoders(files, seed, request):
    paths = request.getfixturevalue(files)
    stock = stock_model(paths)
    samples = speech_like(2.0, seed=seed)
    embedder = Embedder(load_nets(paths), PUBLIC_KEY)
    ours, _ = stream(embedder, samples, CUTS["ramp"])
    theirs, _ = stock.encode_wav(samples.copy(), 24000, list(PUBLIC_KEY), message_sdr=15, calc_sdr=False)
    read_ours, read_theirs = (stock.decode_wav(audio, 24000, False) for audio in (ours, theirs))
    assert read_ours["messages"] == read_theirs["messages"] == [list(PUBLIC_KEY)]
    assert read_ours["confidences"][0] == pytest.approx(read_theirs["confidences"][0], abs=0.03)
    assert stock.decode_wav(samples, 24000, False)["messages"] != [list(PUBLIC_KEY)]


def test_streams_share_nothing(untrained):
    embedder = Embedder(untrained, PUBLIC_KEY, level=RunningLevel())
    clips = [speech_like(0.5, seed=1), 0.2 * speech_like(0.5, seed=2)]
    alone = [embedder.embed(clip) for clip in clips]
    buffers = [buffer.clone() for buffer in untrained.enc_c.buffers()]
    streams = [embedder.open(), embedder.open()]
    out = [[], []]
    for start in range(0, 12000, FRAME):
        for index in (0, 1):
            out[index].append(streams[index].push(clips[index][start : start + FRAME]))
    for index in (0, 1):
        out[index].append(streams[index].finish())
        assert np.abs(np.concatenate(out[index]) - alone[index]).max() < 1e-6
    assert all(torch.equal(a, b) for a, b in zip(buffers, untrained.enc_c.buffers(), strict=True))


@pytest.mark.parametrize("nets", ["untrained", "untrained_44k"])
@pytest.mark.parametrize("length", [0, 1, 2, 79, 80, 81, 255, 256, 257, 4097])
def test_any_length_comes_out_as_long_as_it_went_in(nets, length, request):
    embedder = Embedder(request.getfixturevalue(nets), PUBLIC_KEY)
    marked = embedder.embed(speech_like(0.2)[:length])
    assert len(marked) == length and np.isfinite(marked).all()


@pytest.mark.parametrize("level", [FixedLevel(), RunningLevel()])
def test_silence_stays_silent_and_extremes_stay_finite(untrained_44k, level):
    embedder = Embedder(untrained_44k, PUBLIC_KEY, level=level)
    assert not embedder.embed(np.zeros(9000, np.float32)).any()
    for samples in (np.ones(9000, np.float32), np.sign(speech_like(0.5)), np.full(9000, 1e-30, np.float32)):
        assert np.isfinite(embedder.embed(samples)).all()


def test_a_resampled_stream_keeps_the_audio_itself_untouched(untrained_44k):
    # At a strength of 100 dB below the level hardly anything but a resampler's error would be left.
    samples = speech_like(0.5)
    marked = Embedder(untrained_44k, PUBLIC_KEY, message_sdr_db=100).embed(samples)
    assert np.abs(marked - samples).max() < 2e-5


@pytest.mark.parametrize("gain_db", [-12, 0, 12])
def test_the_running_level_keeps_the_mark_in_proportion(pair, stock_pair, gain_db):
    samples = speech_like(3.0, seed=1) * 10 ** (gain_db / 20)
    marked = Embedder(pair, PUBLIC_KEY, level=RunningLevel()).embed(samples)
    sdr_db = 10 * np.log10(np.mean(samples**2) / np.mean((marked - samples) ** 2))
    assert 12 < sdr_db < 20  # nominal 15; a mark that quiet bins cannot carry is weaker
    assert stock_pair.decode_wav(marked, 24000, False)["messages"] == [list(PUBLIC_KEY)]


def test_damaged_nets_give_no_audio(untrained_files):
    nets = load_nets(untrained_files)
    nets.dec_c.main[0].bn.running_mean[0] = torch.nan
    with pytest.raises(RuntimeError, match="not finite"):
        Embedder(nets, PUBLIC_KEY).embed(speech_like(0.2))


def test_what_cannot_be_marked_is_refused(untrained):
    embedder = Embedder(untrained, PUBLIC_KEY)
    with pytest.raises(ValueError, match="finite"):
        embedder.open().push(np.array([0.0, np.nan], np.float32))
    with pytest.raises(ValueError, match="dimensions"):
        embedder.open().push(np.zeros((2, 2), np.float32))
    finished = embedder.open()
    assert len(finished.finish()) == 0
    with pytest.raises(ValueError, match="finished"):
        finished.push(np.zeros(1, np.float32))
    with pytest.raises(ValueError, match="key is 4 bytes, must be exactly 5"):
        Embedder(untrained, PUBLIC_KEY[:4])
    with pytest.raises(ValueError, match="message_sdr_db is -1"):
        Embedder(untrained, PUBLIC_KEY, message_sdr_db=-1)


def test_pauses_are_left_as_they_are_and_quiet_speech_is_not(untrained):
    embedder = Embedder(untrained, PUBLIC_KEY, level=RunningLevel())
    speech, pause = speech_like(1.0, seed=1), 0.001 * speech_like(1.0, seed=2)  # 60 dB below
    clip = np.concatenate([speech, pause, speech])
    mark = np.abs(embedder.embed(clip) - clip)
    inner = slice(24000 + 2048, 48000 - 2048)  # beyond the windows that speech reaches into
    assert mark[inner].max() < 1e-6 and mark[:24000].max() > 1e-3
    quiet = 0.02 * speech_like(3.0, seed=3)  # all of it: 34 dB below what speech is like
    marked = embedder.embed(quiet)
    assert np.abs(marked - quiet)[-24000:].max() > 1e-6


@pytest.mark.parametrize("pad", [False, True], ids=["as they come", "filled up"])
@pytest.mark.parametrize("nets", ["untrained", "untrained_44k"])
def test_a_stream_that_begins_at_a_checkpoint_is_the_rest_of_the_undisturbed_one(nets, pad, request):
    samples = speech_like(2.0, seed=6)[:40001]
    embedder = Embedder(request.getfixturevalue(nets), PUBLIC_KEY, level=RunningLevel(), pad=pad, slots=2)
    undisturbed, marked, checkpoints = embedder.open(), [], []
    for start in range(0, len(samples), FRAME):
        marked.append(undisturbed.push(samples[start : start + FRAME]))
        checkpoint = undisturbed.checkpoint
        assert checkpoint is None or checkpoint.first_sample >= 0
        if checkpoint is not None and checkpoint.first_marked_sample < len(samples):
            checkpoints.append(checkpoint)
    whole = np.concatenate([*marked, undisturbed.finish()])
    assert len(checkpoints) > 5
    for checkpoint, cut in zip([checkpoints[0], *checkpoints[-3:]], (1, 700, FRAME, 5000), strict=True):
        resumed = embedder.open_at(*astuple(checkpoint))
        rest = samples[checkpoint.first_sample :][: len(samples) if cut > 1 else 1000]
        parts = [resumed.push(rest[start : start + cut]) for start in range(0, len(rest), cut)]
        if cut > 1:
            parts.append(resumed.finish())
        audio = np.concatenate(parts)
        expected = whole[checkpoint.first_marked_sample :][: len(audio)]
        assert len(audio) == len(expected) and (cut == 1 or len(audio) == len(samples) - checkpoint.first_marked_sample)
        np.testing.assert_allclose(audio, expected, atol=1e-6)
        resumed.close()


@pytest.mark.parametrize(
    "change",
    [
        {"first_sample": 1}, {"first_marked_sample": 10}, {"columns": 3}, {"columns": -1}, {"columns": 1 << 40},
        {"power_sum": float("nan")}, {"power_sum": float("inf")}, {"power_sum": -1.0}, {"power_sum": 1e9},
    ],
)  # fmt: skip
def test_a_checkpoint_that_no_stream_gave_is_refused(untrained, change):
    embedder = Embedder(untrained, PUBLIC_KEY, level=RunningLevel())
    checkpoint = asdict(embedder.checkpoint(100, 3.5))
    embedder.open_at(**checkpoint).close()
    with pytest.raises(ValueError, match="none that this model's streams give"):
        embedder.open_at(**checkpoint | change)


def test_a_checkpoint_beyond_what_counts_as_an_open_stream_is_refused(untrained):
    """Columns there would count as after the stream's end: they would not be marked."""
    embedder = Embedder(untrained, PUBLIC_KEY, level=RunningLevel())
    last = OPEN_LENGTH // 2 // untrained.hparams.hop_length
    embedder.open_at(**asdict(embedder.checkpoint(last - 1, 1.0))).close()
    with pytest.raises(ValueError, match="none that this model's streams give"):
        embedder.open_at(**asdict(embedder.checkpoint(last, 1.0)))
