"""The sampling temperature that is folded into a bundle's heads, and taken out again."""

import sys

import pytest
import torch
from safetensors.torch import load_file, save_file


@pytest.fixture
def recipe(recipe_modules):
    return recipe_modules("sharpen", "unpack")


def generator(path):
    draw = torch.Generator().manual_seed(0)
    tensors = {
        "codebook0_head.weight": torch.randn(12, 8, generator=draw).bfloat16(),
        "audio_head": torch.randn(7, 8, 12, generator=draw).bfloat16(),
        "projection.weight": torch.randn(8, 8, generator=draw).bfloat16(),
    }
    path.mkdir(parents=True)
    save_file(tensors, path / "model.safetensors")
    return tensors


def test_sharpened_heads_draw_at_0_9_as_before_at_0_6(recipe, tmp_path, monkeypatch):
    before = generator(tmp_path / "generator")
    monkeypatch.setattr(sys, "argv", ["sharpen.py", "--generator", str(tmp_path / "generator"), "--factor", "1.5"])
    recipe[0].main()
    after = load_file(tmp_path / "generator/model.safetensors")
    hidden = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    for name in ("codebook0_head.weight", "audio_head"):
        assert after[name].dtype == torch.bfloat16
        was, now = (hidden @ (h[name].float().T if h[name].ndim == 2 else h[name].float()[0]) for h in (before, after))
        torch.testing.assert_close((now / 0.9).softmax(-1), (was / 0.6).softmax(-1), atol=0.03, rtol=0)
    assert torch.equal(after["projection.weight"], before["projection.weight"])
    assert (tmp_path / "generator/model.safetensors").stat().st_mode & 0o777 == 0o644


def test_unpacking_takes_the_temperature_out_of_the_heads(recipe, tmp_path, monkeypatch):
    sharpen, unpack = recipe
    trained = generator(tmp_path / "bundle/generator")
    (tmp_path / "bundle/mimi").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "bundle/mimi" / name).write_bytes(b"{}")
    save_file(sharpen.sharpened(trained, sharpen.SHARPEN), tmp_path / "bundle/generator/model.safetensors")
    monkeypatch.setattr(
        sys, "argv", ["unpack.py", "--bundle", str(tmp_path / "bundle"), "--out", str(tmp_path / "out")]
    )
    unpack.main()
    back = load_file(tmp_path / "out/generator/model.safetensors")
    torch.testing.assert_close(back["audio_head"], trained["audio_head"].float(), atol=0, rtol=2**-8)
