"""Clips to frames, against moshi's own MimiModel.encode."""

import weakref

import numpy as np
import pytest
import torch

from models.bundle import load_bundle
from models.mimi import load_mimi
from services.runtime.audio import Clip, resample
from services.tokenizer import encoder as encoder_module
from services.tokenizer.encoder import ClipEncoder
from support.tiny_mimi import write_bundle


def noise(samples, seed=0):
    return np.random.default_rng(seed).normal(0, 0.2, samples).astype(np.float32)


@torch.inference_mode()
def stock(mimi, samples):
    return mimi.encode(torch.from_numpy(samples)[None, None])[0].T.numpy()


@pytest.mark.parametrize("samples", [1, 1919, 1920, 1921, 24_000, 50 * 1920 + 5])
def test_codes_are_those_of_mimi(tiny_mimi, samples):
    clip = noise(samples)
    codes = ClipEncoder(tiny_mimi).encode(clip)
    assert codes.shape == (-(-samples // 1920), 4)
    np.testing.assert_array_equal(codes, stock(tiny_mimi, clip))


def test_codes_vary(tiny_mimi):
    codes = ClipEncoder(tiny_mimi).encode(noise(50 * 1920))
    assert all(len(np.unique(codes[:, k])) > 5 for k in range(4))


@pytest.mark.parametrize("frames", [1, 2, 5, 7])
def test_long_clips_in_chunks_are_the_whole(tiny_mimi, monkeypatch, frames):
    clip = noise(40 * 1920 + 77, seed=1)
    with torch.inference_mode():
        whole = tiny_mimi.encoder(torch.from_numpy(clip[: 40 * 1920])[None, None])
    monkeypatch.setattr(encoder_module, "_CHUNK_FRAMES", frames)
    encoder = ClipEncoder(tiny_mimi)
    with torch.inference_mode():
        parts = encoder._convolve(torch.from_numpy(clip[: 40 * 1920])[None, None])
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-5)
    np.testing.assert_array_equal(encoder.encode(clip), stock(tiny_mimi, clip))


def test_the_lead_is_no_longer_than_needed(tiny_mimi):
    """One frame less before a chunk changes its output: the reach is really that long."""
    encoder = ClipEncoder(tiny_mimi)
    assert encoder._lead_frames == 2
    clip = torch.from_numpy(noise(10 * 1920, seed=2))[None, None]
    with torch.inference_mode():
        whole = tiny_mimi.encoder(clip)[..., 10:]
        short = tiny_mimi.encoder(clip[..., 4 * 1920 :])[..., 2:]
    assert not torch.allclose(short, whole, atol=1e-3)


def test_resampled_clips_have_the_length_of_the_original(tiny_mimi):
    clip = resample(Clip(noise(44_100), 44_100), 24_000)
    assert ClipEncoder(tiny_mimi).encode(clip.samples).shape == (13, 4)


LENGTHS = (40 * 1920 + 77, 1, 1920, 1921, 24_000, 40 * 1920, 3)


@pytest.mark.parametrize("pad", [False, True])
@pytest.mark.parametrize("frames", [3, 125])
@pytest.mark.parametrize("order", [1, -1])
def test_codes_of_clips_in_one_pass_are_those_of_each_alone(tiny_mimi, monkeypatch, frames, order, pad):
    """Alone by moshi's own encode: neither padding nor the other clips of a pass change a code."""
    monkeypatch.setattr(encoder_module, "_CHUNK_FRAMES", frames)
    clips = [noise(samples, seed) for seed, samples in enumerate(LENGTHS)][::order]
    codes = ClipEncoder(tiny_mimi, pad=pad).encode_all(clips)
    for clip, own in zip(clips, codes, strict=True):
        np.testing.assert_array_equal(own, stock(tiny_mimi, clip))
        assert own.dtype == np.uint16 and own.base is None  # kept, it holds no other clip's memory


def test_padded_chunks_have_few_lengths_and_those_of_short_clips_are_warm(tiny_mimi, monkeypatch):
    """What is the default on a GPU."""
    seen, convolve = set(), tiny_mimi.encoder.forward
    monkeypatch.setattr(tiny_mimi.encoder, "forward", lambda audio: (seen.add(audio.shape), convolve(audio))[1])
    encoder = ClipEncoder(tiny_mimi, pad=True)
    encoder.warm_up()
    warm = set(seen)
    codes = {frames: encoder.encode(noise(frames * 1920)) for frames in (*range(1, 126, 6), 125)}
    assert seen == warm
    codes |= {frames: encoder.encode(noise(frames * 1920)) for frames in range(126, 260, 9)}
    assert len(warm) == 20 and len(seen) <= 2 * 20
    for frames in (1, 7, 25, 97, 125, 126, 144):
        np.testing.assert_array_equal(codes[frames], stock(tiny_mimi, noise(frames * 1920)))


def test_what_follows_the_clip_in_its_row_changes_no_code(tiny_mimi):
    """Loud noise in place of the padding: Mimi is causal, its attention too."""
    clip, tail = noise(30 * 1920), noise(30 * 1920, seed=1) * 5
    alone, longer = ClipEncoder(tiny_mimi).encode_all([clip, np.concatenate([clip, tail])])
    np.testing.assert_array_equal(longer[:30], alone)
    assert len(np.unique(longer[30:], axis=0)) > 10


def test_a_clip_that_fails_fails_alone(tiny_mimi):
    clips = [noise(samples, seed) for seed, samples in enumerate((5000, 0, 9000, 7000, 0))]
    results = ClipEncoder(tiny_mimi).encode_all(clips)
    for clip, result in zip(clips, results, strict=True):
        if len(clip):
            np.testing.assert_array_equal(result, stock(tiny_mimi, clip))
        else:
            assert isinstance(result, ValueError) and "without samples" in str(result)


def test_a_pass_that_is_too_large_is_made_in_parts(tiny_mimi, monkeypatch):
    """As a GPU with little memory left would have it."""
    clips, passes = [noise(9600, seed) for seed in range(7)], []
    convolve = ClipEncoder._convolve

    def limited(encoder, audio):
        passes.append(len(audio))
        if len(audio) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return convolve(encoder, audio)

    monkeypatch.setattr(ClipEncoder, "_convolve", limited)
    codes = ClipEncoder(tiny_mimi).encode_all(clips)
    for clip, own in zip(clips, codes, strict=True):
        np.testing.assert_array_equal(own, stock(tiny_mimi, clip))
    assert passes == [7, 3, 1, 2, 4, 2, 2]


def test_what_a_failed_pass_held_is_free_for_the_next(tiny_mimi, monkeypatch):
    """Errors are kept for those who wait for them: they must not keep a device's memory with them."""
    held, free = [], []

    def fails(encoder, audio):
        free.append(all(activations() is None for activations in held))
        activations = torch.zeros(10)
        held.append(weakref.ref(activations))
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(ClipEncoder, "_convolve", fails)
    errors = ClipEncoder(tiny_mimi).encode_all([noise(9600), noise(9600), noise(9600)])
    assert all(isinstance(error, torch.OutOfMemoryError) for error in errors)
    assert free == [True] * 5


@pytest.mark.gpu
def test_codes_of_a_gpu_are_those_of_a_cpu(tmp_path, monkeypatch):
    def compiled(function):
        raise AssertionError("compiled")

    monkeypatch.setattr(torch, "compile", compiled)
    bundle = load_bundle(str(write_bundle(tmp_path)))
    clip = noise(50 * 1920)
    ours = ClipEncoder(load_mimi(bundle, "cuda")).encode(clip)
    # A sum in another order may tip a close decision, and with it the residual of the codebooks behind it.
    assert (ours == ClipEncoder(load_mimi(bundle)).encode(clip)).mean() > 0.98


@pytest.mark.gpu
def test_codes_of_clips_in_one_pass_of_a_gpu_are_those_of_each_alone(tmp_path):
    encoder = ClipEncoder(load_mimi(load_bundle(str(write_bundle(tmp_path))), "cuda"))
    clips = [noise(samples, seed) for seed, samples in enumerate(LENGTHS)]
    alone = np.concatenate([encoder.encode(clip) for clip in clips])
    assert (np.concatenate(encoder.encode_all(clips)) == alone).mean() > 0.98  # close decisions, as above
