"""Clips to frames, against moshi's own MimiModel.encode."""

import numpy as np
import pytest
import torch
from tiny_mimi import write_bundle

from models.bundle import load_bundle
from models.mimi import load_mimi
from services.runtime.audio import Clip, resample
from services.tokenizer import encoder as encoder_module
from services.tokenizer.encoder import ClipEncoder


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
