"""The script that makes the noise bundle: whole parts, the bundle's shapes, the same weights every time."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from models.bundle import load_bundle
from models.mimi import load_mimi
from services.backbone.weights import load_model
from services.tokenizer.text import load_text_tokenizer
from services.watermark.weights import load_nets
from training.noise import build as script
from training.noise import mimi_weights

PARTS = ["tokenizer.json", "mimi", "generator", "watermark"]


def placed(bundle, folder):
    """The bundle with its files in `folder`, and a generator small enough to make quickly."""
    small = replace(bundle.generator.backbone, layers=1, dim=32, heads=2, kv_heads=2, intermediate_dim=32)
    generator = replace(bundle.generator, backbone=small, decoder=replace(small, max_seq_len=9), folder=folder)
    parts = {name: replace(getattr(bundle, name), folder=folder) for name in ("text_tokenizer", "mimi", "watermark")}
    return replace(bundle, generator=generator, folder=folder, **parts)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("built")
    bundle = placed(load_bundle("noise"), folder)
    assert script.build(bundle) == PARTS
    return bundle


def test_every_part_loads_in_its_service(built):
    assert load_mimi(built).num_codebooks == built.codebooks
    load_text_tokenizer(built, max_chars=100)
    load_model(built.generator)
    load_nets(built.watermark.resolve())


def test_nothing_to_do_when_complete_and_only_what_is_missing_otherwise(built):
    before = (built.folder / "mimi" / "model.safetensors").stat()
    assert script.build(built) == []
    (built.folder / "tokenizer.json").unlink()
    (built.folder / "watermark" / "dec_c.ckpt").unlink()
    assert script.build(built) == ["tokenizer.json", "watermark"]
    after = (built.folder / "mimi" / "model.safetensors").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert sorted(path.name for path in built.folder.iterdir()) == sorted(PARTS)


def test_an_interrupted_build_leaves_no_half_of_a_part(built, tmp_path, monkeypatch):
    def half(bundle, place):
        place.mkdir()
        (place / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "_make_mimi", half)
    with pytest.raises(KeyboardInterrupt):
        script.build(placed(built, tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]


def test_force_makes_the_same_again(built, tmp_path):
    bundle = placed(built, tmp_path)
    script.build(bundle)
    assert script.build(bundle, force=True) == PARTS
    for name in ("mimi", "generator"):
        one, two = (load_file(folder / name / "model.safetensors") for folder in (built.folder, tmp_path))
        assert one.keys() == two.keys()
        assert all(torch.equal(tensor, two[key]) for key, tensor in one.items())
    assert (tmp_path / "tokenizer.json").read_bytes() == (built.folder / "tokenizer.json").read_bytes()
    for name in ("enc_c.ckpt", "dec_c.ckpt", "dec_m_0.ckpt"):
        one, two = (torch.load(f / "watermark" / name, weights_only=True) for f in (built.folder, tmp_path))
        assert all(torch.equal(tensor, two[key]) for key, tensor in one.items())


@torch.inference_mode()
def test_mimi_makes_noise_that_is_heard_and_does_not_clip(built):
    codes = torch.randint(1024, (4, 8, 50), generator=torch.Generator().manual_seed(1))
    audio = load_mimi(built).decode(codes)[..., 4 * 1920 :]
    for stream in audio[:, 0]:
        assert 0.02 < stream.std() < 0.2
        assert stream.mean().abs() < 0.02
        assert stream.abs().max() < 1


@torch.inference_mode()
def test_mimi_hears_differences(built):
    sound = mimi_weights._sound(torch.Generator().manual_seed(7), 24_000, seconds=10)
    codes = load_mimi(built).encode(sound)[0].numpy()
    assert codes.shape == (8, 125)
    assert all(len(np.unique(row)) > 60 for row in codes)
