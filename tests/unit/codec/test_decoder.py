"""Streaming in slots against moshi's own one-shot decode, for every way of cutting and mixing."""

import numpy as np
import pytest
import torch
from moshi.models import loaders

from models.bundle import load_bundle
from models.mimi import load_mimi
from services.codec.decoder import SlotDecoder
from services.codec.network import UnknownShape
from support import tiny_mimi as tiny

FRAMES = 40  # eight times what the tiny transformer looks back


@pytest.fixture(params=[False, True], ids=["as they come", "filled up"])
def decoder(tiny_mimi, request):
    """Passes as they come, and filled up to the sizes that a GPU's graphs have."""
    decoder = SlotDecoder(tiny_mimi, slots=5, max_chunk_frames=8, graphs=request.param)
    decoder.warm_up()
    return decoder


def random_codes(seed, frames=FRAMES, codebooks=4, bins=32):
    return np.random.default_rng(seed).integers(0, bins, (frames, codebooks))


@torch.inference_mode()
def one_shot(mimi, codes):
    return mimi.decode(torch.from_numpy(codes.T.copy())[None])[0, 0].numpy()


def cut(codes, sizes):
    """Chunks of the given sizes, over and over."""
    chunks, start = [], 0
    while start < len(codes):
        size = sizes[len(chunks) % len(sizes)]
        chunks.append(codes[start : start + size])
        start += size
    return chunks


@pytest.mark.parametrize("sizes", [[1], [2], [3], [7], [8], [1, 1, 2, 4, 8], [7, 1, 3, 5]])
def test_streamed_is_one_shot(decoder, tiny_mimi, sizes):
    codes = random_codes(1)
    decoder.reset(2)
    audio = np.concatenate([decoder.decode([(2, chunk)])[0] for chunk in cut(codes, sizes)])
    whole = one_shot(tiny_mimi, codes)
    assert audio.shape == whole.shape == (FRAMES * 1920,)
    assert whole.std() > 0.01
    np.testing.assert_allclose(audio, whole, atol=1e-5)


def test_streams_that_join_pause_and_leave_do_not_touch_each_other(decoder, tiny_mimi):
    """Twelve streams over five slots: each tick a random part of them moves, by chunks of any length."""
    random = np.random.default_rng(2)
    waiting = [random_codes(100 + i, frames=int(random.integers(1, FRAMES))) for i in range(12)]
    expected = [one_shot(tiny_mimi, codes) for codes in waiting]
    free, running, heard = list(range(5)), {}, {i: [] for i in range(12)}
    started = ticks = 0
    while started < 12 or running:
        ticks += 1
        if free and started < 12 and random.random() < 0.5:
            slot = free.pop(int(random.integers(len(free))))
            decoder.reset(slot)
            running[started] = (slot, waiting[started])
            started += 1
        moving = [i for i in running if random.random() < 0.7]
        batch = []
        for i in moving:
            slot, codes = running[i]
            size = int(random.integers(1, 9))
            batch.append((slot, codes[:size]))
            running[i] = (slot, codes[size:])
        for i, samples in zip(moving, decoder.decode(batch), strict=True):
            heard[i].append(samples)
        for i in [i for i, (_, codes) in running.items() if not len(codes)]:
            free.append(running.pop(i)[0])
    assert ticks > 20
    for i, whole in enumerate(expected):
        np.testing.assert_allclose(np.concatenate(heard[i]), whole, atol=1e-5, err_msg=f"stream {i}")


def test_the_model_is_one_shot_between_passes(decoder, tiny_mimi):
    codes = random_codes(3)
    decoder.reset(0)
    first = decoder.decode([(0, codes[:3])])[0]
    whole = one_shot(tiny_mimi, codes)
    rest = decoder.decode([(0, codes[3:8])])[0]
    np.testing.assert_allclose(np.concatenate([first, rest]), whole[: 8 * 1920], atol=1e-5)
    assert not any(getattr(module, "is_streaming", False) for module in tiny_mimi.modules())


def test_reset_forgets(decoder):
    codes = random_codes(4)
    decoder.reset(1)
    first = decoder.decode([(1, codes[:5])])[0]
    assert not np.allclose(decoder.decode([(1, codes[:5])])[0], first, atol=1e-3)
    decoder.reset(1)
    np.testing.assert_array_equal(decoder.decode([(1, codes[:5])])[0], first)


@pytest.mark.parametrize("frames", [0, 9])
def test_chunks_beyond_the_limit_are_refused(decoder, frames):
    with pytest.raises(ValueError, match="1 to 8"):
        decoder.decode([(0, random_codes(5, frames=frames))])


def test_a_slot_twice_is_refused(decoder):
    with pytest.raises(ValueError, match="twice"):
        decoder.decode([(0, random_codes(6, frames=1)), (0, random_codes(7, frames=1))])


def test_more_streams_than_a_pass_holds(tiny_mimi, monkeypatch):
    monkeypatch.setattr("services.codec.decoder._MAX_BATCH", 3)
    decoder = SlotDecoder(tiny_mimi, slots=8, graphs=True)
    decoder.warm_up()
    assert decoder._graphs.max_batch == 3
    codes = [random_codes(20 + slot, frames=4) for slot in range(8)]
    for slot in range(8):
        decoder.reset(slot)
    halves = [decoder.decode([(slot, codes[slot][part]) for slot in range(8)]) for part in (slice(0, 2), slice(2, 4))]
    for slot in range(8):
        heard = np.concatenate([halves[0][slot], halves[1][slot]])
        np.testing.assert_allclose(heard, one_shot(tiny_mimi, codes[slot]), atol=1e-5)


def test_passes_begun_before_others_are_done(decoder, tiny_mimi):
    """Of other streams, and of the same ones; results are asked for in any order."""
    codes = [random_codes(30 + slot, frames=6) for slot in range(4)]
    for slot in range(4):
        decoder.reset(slot)
    first = decoder.begin([(0, codes[0][:2]), (1, codes[1][:2])])
    second = decoder.begin([(1, codes[1][2:6]), (2, codes[2][:6]), (0, codes[0][2:6])])
    third = decoder.begin([(3, codes[3])])
    (heard_3,), (rest_1, heard_2, rest_0), (begun_0, begun_1) = third(), second(), first()
    heard = [np.concatenate([begun_0, rest_0]), np.concatenate([begun_1, rest_1]), heard_2, heard_3]
    for samples, stream in zip(heard, codes, strict=True):
        np.testing.assert_allclose(samples, one_shot(tiny_mimi, stream), atol=1e-5)


@pytest.mark.parametrize(
    ("part", "change", "told"),
    [
        ("seanet", {"ratios": [8, 6, 40]}, "upsample: none"),
        ("seanet", {"n_residual_layers": 2}, "19 modules"),
        ("seanet", {"pad_mode": "replicate"}, "padding"),
        ("seanet", {"true_skip": False}, "instead of Identity"),
        ("transformer", {"num_layers": 0}, "layers: none"),
        ("transformer", {"gating": "silu"}, "gates"),
        ("transformer", {"context": None}, "context"),
        ("transformer", {"norm": "rms_norm_f32"}, "instead of LayerNorm"),
    ],
)
def test_a_model_of_another_make_is_refused_at_the_start(part, change, told):
    with torch.device("meta"):
        mimi = loaders.get_mimi(None, tiny.CONFIG | {part: tiny.CONFIG[part] | change}, device="meta", num_codebooks=4)
    with pytest.raises(UnknownShape, match=told):
        SlotDecoder(mimi, slots=1)


@pytest.mark.parametrize(("precision", "least_db"), [("tf32", 60), ("fp16", 58)])
def test_a_lower_precision_keeps_the_voice(precision, least_db):
    """The embedded bundle's audio of any codes, with products of TF32 or fp16; of speech it is some dB better."""
    mimi = load_mimi(load_bundle("embedded"))
    codes = [(slot, random_codes(40 + slot, frames=8, codebooks=mimi.num_codebooks, bins=1024)) for slot in range(2)]
    exact, rounded = (
        np.concatenate(SlotDecoder(mimi, slots=2, precision=each).decode(codes)) for each in ("fp32", precision)
    )
    difference = np.square(exact - rounded).sum()
    assert 0 < difference < 10 ** (-least_db / 10) * np.square(exact).sum()


@pytest.mark.gpu
@pytest.mark.parametrize("graphs", [False, True])
def test_streamed_is_one_shot_on_a_gpu(tmp_path, graphs):
    mimi = load_mimi(load_bundle(str(tiny.write_bundle(tmp_path))), "cuda")
    decoder = SlotDecoder(mimi, slots=3, graphs=graphs)
    decoder.warm_up()
    codes = random_codes(10)
    with torch.inference_mode():
        whole = mimi.decode(torch.from_numpy(codes.T.copy())[None].cuda())[0, 0].cpu().numpy()
    for slots in ([0, 1, 2], [0, 2]):  # beside each other, and not
        for slot in slots:
            decoder.reset(slot)
        passes = [decoder.decode([(slot, chunk) for slot in slots]) for chunk in cut(codes, [1, 1, 2, 4, 8])]
        for i in range(len(slots)):
            np.testing.assert_allclose(np.concatenate([parts[i] for parts in passes]), whole, atol=1e-4)


def public_mimi(device):
    """Mimi as CSM-1B uses it, with random weights."""
    torch.manual_seed(0)
    with torch.device(device):
        mimi = loaders.get_mimi(None, num_codebooks=32, device=device)
    for quantizer in (mimi.quantizer.rvq_first, mimi.quantizer.rvq_rest):
        for layer in quantizer.vq.layers:
            layer._codebook.embedding_sum.normal_()
    return mimi.requires_grad_(False)


@pytest.mark.slow
def test_the_public_shape_streams():
    """Past the 125 frames its transformer looks back."""
    mimi = public_mimi("cpu")
    codes = [random_codes(seed, frames=150, codebooks=32, bins=2048) for seed in (8, 9)]
    decoder = SlotDecoder(mimi, slots=2)
    heard = [[], []]
    for chunks in zip(*(cut(stream, [8]) for stream in codes), strict=True):
        for parts, samples in zip(heard, decoder.decode(list(enumerate(chunks))), strict=True):
            parts.append(samples)
    for parts, stream in zip(heard, codes, strict=True):
        whole = one_shot(mimi, stream)
        np.testing.assert_allclose(np.concatenate(parts) / whole.std(), whole / whole.std(), atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "limit"), [("fp32", 2e-4), ("tf32", 5e-3), ("fp16", 1e-2)])
def test_the_public_shape_streams_in_kernels(monkeypatch, precision, limit):
    """Streams that join, pause and leave, in chunks of many lengths, in slots of a pool that is filled up."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    mimi = public_mimi("cuda")
    decoder = SlotDecoder(mimi, slots=5, precision=precision)
    decoder.warm_up()
    random = np.random.default_rng(3)
    streams = [random_codes(50 + i, frames=int(random.integers(20, 150)), codebooks=32, bins=2048) for i in range(8)]
    free, running, heard, started = list(range(5)), {}, [[] for _ in streams], 0
    while started < len(streams) or running:
        if free and started < len(streams) and random.random() < 0.5:
            slot = free.pop(int(random.integers(len(free))))
            decoder.reset(slot)
            running[started] = (slot, streams[started])
            started += 1
        moving = [(i, *running[i], int(random.integers(1, 9))) for i in running if random.random() < 0.7]
        samples = decoder.decode([(slot, codes[:size]) for _, slot, codes, size in moving])
        for (i, slot, codes, size), part in zip(moving, samples, strict=True):
            heard[i].append(part)
            running[i] = (slot, codes[size:])
            if len(codes) <= size:
                free.append(running.pop(i)[0])
    for parts, codes in zip(heard, streams, strict=True):
        with torch.inference_mode():
            whole = mimi.decode(torch.from_numpy(codes.T.copy())[None].cuda())[0, 0].cpu().numpy()
        np.testing.assert_allclose(np.concatenate(parts) / whole.std(), whole / whole.std(), atol=limit)


@pytest.mark.parametrize("missing", [0, 3])
def test_a_stream_that_begins_a_history_before_a_frame_gives_its_audio(decoder, tiny_mimi, missing):
    """And one that begins later does not, so the history is no longer than it must be by much."""
    history = decoder.history_frames
    codes = random_codes(5, frames=3 * history)
    begin = 2 * history
    decoder.reset(0)
    parts = [decoder.decode([(0, chunk)])[0] for chunk in cut(codes[begin - history + missing :], [4])]
    audio = np.concatenate(parts)[(history - missing) * 1920 :]
    off = np.abs(audio - one_shot(tiny_mimi, codes)[begin * 1920 :])
    assert off.max() < 1e-5 if not missing else off[:1920].max() > 1e-5


@torch.inference_mode()
def test_an_hour_into_a_stream_the_audio_is_that_of_its_beginning(tiny_mimi):
    """The transformer's positions do not lose their precision."""
    decoder = SlotDecoder(tiny_mimi, slots=2, max_chunk_frames=8)
    history = decoder.history_frames
    codes = random_codes(6, frames=2 * history)
    heard = []
    for slot, steps in ((0, 0), (1, 90_000)):
        decoder.reset(slot)
        decoder._network._offsets[slot] = steps
        audio = np.concatenate([decoder.decode([(slot, chunk)])[0] for chunk in cut(codes, [8])])
        heard.append(audio[history * 1920 :])
    np.testing.assert_allclose(heard[1], heard[0], atol=1e-5)
