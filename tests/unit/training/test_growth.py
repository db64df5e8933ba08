"""A codec and a generator that go on in a larger shape say at first what the smaller ones said."""

import copy
import json

import pytest

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors.torch")


def shape(codec, books: int, filters: int, layers: int) -> dict:
    config = copy.deepcopy(codec.CONFIG)
    config["seanet"] |= {"n_filters": 2, "dimension": 12}
    config["transformer"] |= {
        "d_model": 12, "num_heads": 2, "num_layers": 1, "dim_feedforward": 16, "input_dimension": 12,
        "output_dimensions": [12],
    }  # fmt: skip
    config["quantizer"] |= {"n_q": books, "bins": 16, "dimension": 8, "input_dimension": 12, "output_dimension": 12}
    config["encoder"] = {"seanet": {"n_filters": filters}, "transformer": {"num_layers": layers}}
    return config


@torch.no_grad()
def test_a_grown_codec_gives_the_same_sound_and_its_new_codebooks_refine_it(recipe_modules, tmp_path):
    codec, codebooks = recipe_modules("codec", "codebooks")
    torch.manual_seed(0)
    small = codec.build(shape(codec, 3, 2, 1))
    codec.initialise(small)
    audio = torch.randn(2, 1, 1920 * 6) * 0.1
    books = codebooks.Codebooks(small)
    many = codec.latent(small, torch.randn(8, 1, 1920 * 40) * 0.1).transpose(0, 1).reshape(1, 12, -1)
    books.seed(many)
    codec.save(small, tmp_path, torch.float32)
    small = codec.restored(tmp_path)
    large, new = codec.grown(tmp_path, shape(codec, 5, 4, 3))
    assert new == 2 and json.loads((tmp_path / "config.json").read_text())["quantizer"]["n_q"] == 3
    before, after = codec.latent(small, audio), codec.latent(large, audio)
    assert torch.allclose(before, after, atol=1e-5)
    x, _, _, codes = codebooks.Codebooks(small)(before, None, update=False)
    grown = codebooks.Codebooks(large)
    y, _, _, more = grown(after, None, update=False)
    assert torch.equal(codes, more[:, :3]) and torch.allclose(x, y, atol=1e-5)
    assert torch.allclose(codec.waveform(small, x), codec.waveform(large, y), atol=1e-5)

    def left() -> float:
        """What the acoustic codebooks do not say of their input."""
        return (grown.rest.input_proj(many) - quantised_rest()).square().mean().item()

    def quantised_rest() -> torch.Tensor:
        rows = grown.rest.input_proj(many)[0].T
        total = torch.zeros_like(rows)
        for layer in grown.rest.vq.layers:
            table = codebooks.table_of(layer._codebook)
            total = total + table[codebooks.nearest(rows - total, table)]
        return total.T[None]

    without = left()
    grown.seed(many, new)
    assert torch.equal(grown(after, None, update=False)[3][:, :3], codes)
    assert left() < 0.8 * without


@torch.no_grad()
def test_a_generator_of_more_codebooks_takes_over_what_it_can(recipe_modules):
    (generator,) = recipe_modules("generator")

    def settings(codebooks: int, layers: int):
        stack = generator.Shape(2, 2, 2, 16, 24, 64)
        return generator.Settings(stack, generator.Shape(layers, 2, 2, 8, 12, codebooks + 1), 20, 19, codebooks)

    torch.manual_seed(0)
    small, large = (generator.Generator(settings(*shape)).eval() for shape in ((3, 3), (5, 2)))
    small.initialise()
    large.initialise()
    fresh = large.take(small.state_dict())
    assert [name.split()[0] for name in fresh] == ["audio_head", "audio_embeddings.weight"]
    codes, text = torch.randint(0, 16, (1, 7, 5)), torch.full((1, 7), -1)
    codes[:, :3], text[:, :3] = -1, 4
    apart = large.embed(codes, text) - small.embed(codes[..., :3], text)
    assert apart[:, :3].abs().max() == 0 and apart.abs().mean() < 0.2 * small.embed(codes[..., :3], text).abs().mean()
    for own, known in zip(large.decoder.layers, small.decoder.layers, strict=False):
        assert all(torch.equal(a, b) for a, b in zip(own.parameters(), known.parameters(), strict=True))
    assert torch.equal(large.audio_head[:2], small.audio_head)
    codeless = generator.Generator(settings(5, 2))
    codeless.initialise()
    assert set(generator.OF_CODES) <= set(codeless.take(small.state_dict(), codes=False))
    assert not torch.equal(codeless.audio_head[:2], small.audio_head)
