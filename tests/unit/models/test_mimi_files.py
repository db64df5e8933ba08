"""Mimi from files of the public layout, against moshi's own loader; and files that are damaged or foreign."""

import json
from dataclasses import replace

import pytest
import torch
from moshi.models import loaders
from moshi.utils.compile import no_compile, torch_compile_lazy
from safetensors.torch import load_file, save_file

from models.bundle import load_bundle
from models.files import PartError
from models.mimi import load_mimi
from support import tiny_mimi

PUBLIC_NAME = "tokenizer-e351c8d8-checkpoint125.safetensors"


@pytest.fixture
def folder(tmp_path):
    return tiny_mimi.write_bundle(tmp_path)


def load(folder):
    return load_mimi(load_bundle(str(folder)))


def test_weights_arrive_unchanged(folder):
    ours = load(folder)
    stock = loaders.get_mimi(folder / "mimi.safetensors", tiny_mimi.CONFIG, num_codebooks=4)
    theirs = stock.state_dict()
    assert ours.state_dict().keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.state_dict().items())
    assert not ours.training and ours.num_codebooks == 4
    assert not any(parameter.requires_grad for parameter in ours.parameters())


def test_names_of_older_checkpoints(folder):
    """moshi's loader takes them, so does ours."""
    state = load_file(folder / "mimi.safetensors")
    old = {"_initialized": "inited", "cluster_usage": "cluster_size", "embedding_sum": "embed_sum"}
    renamed = {}
    for name, tensor in state.items():
        owner, _, leaf = name.rpartition(".")
        renamed[f"{owner}.{old.get(leaf, leaf)}"] = tensor
    assert renamed.keys() != state.keys()
    save_file(renamed, folder / "mimi.safetensors")
    stock = loaders.get_mimi(folder / "mimi.safetensors", tiny_mimi.CONFIG, num_codebooks=4).state_dict()
    assert all(torch.equal(tensor, stock[name]) for name, tensor in load(folder).state_dict().items())


def test_half_precision_weights_run_in_fp32(folder):
    state = load_file(folder / "mimi.safetensors")
    save_file({name: tensor.bfloat16() for name, tensor in state.items()}, folder / "mimi.safetensors")
    assert {parameter.dtype for parameter in load(folder).parameters()} == {torch.float32}


def test_an_encoder_of_its_own_shape(folder):
    """moshi builds encoder and decoder alike; a section `encoder` makes the one larger and leaves the other."""
    own = {"seanet": {"n_filters": 3}, "transformer": {"num_layers": 3}}
    as_wide = tiny_mimi.CONFIG | {part: tiny_mimi.CONFIG[part] | change for part, change in own.items()}
    stock, wide = (loaders.get_mimi(None, config, num_codebooks=4) for config in (tiny_mimi.CONFIG, as_wide))
    stock.load_state_dict(load_file(folder / "mimi.safetensors"))
    encoder = {name: tensor for name, tensor in wide.state_dict().items() if name.startswith("encoder")}
    decoder = {name: tensor for name, tensor in stock.state_dict().items() if not name.startswith("encoder")}
    save_file(encoder | decoder, folder / "mimi.safetensors")
    (folder / "mimi.json").write_text(json.dumps(tiny_mimi.CONFIG | {"encoder": own}))
    ours = load(folder)
    wide.quantizer.load_state_dict(stock.quantizer.state_dict())
    audio = torch.randn(1, 1, 1920 * 5) * 0.1
    with torch.no_grad():
        latent = wide.encoder_transformer(wide.encoder(audio))[0]
        assert torch.allclose(ours.encoder_transformer(ours.encoder(audio))[0], latent, atol=1e-6)
        codes = ours.encode(audio)
        assert codes.shape == (1, 4, 5) and torch.allclose(ours.decode(codes), stock.decode(codes), atol=1e-6)


def edit_weights(folder, change):
    state = load_file(folder / "mimi.safetensors")
    change(state)
    save_file(state, folder / "mimi.safetensors")


def truncate(folder):
    path = folder / "mimi.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def edit_config(folder, **changes):
    (folder / "mimi.json").write_text(json.dumps(tiny_mimi.CONFIG | changes))


def edit_bundle(folder, old, new):
    path = folder / "bundle.toml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda folder: (folder / "mimi.safetensors").unlink(), "mimi.safetensors: no such file"),
        (truncate, "cannot be read"),
        (
            lambda folder: (folder / "mimi.safetensors").write_bytes(b"<html>not found</html>"),
            "cannot be read",
        ),
        (
            lambda folder: edit_weights(folder, lambda s: s.pop("decoder.model.0.conv.conv.bias")),
            "1 tensors missing: decoder.model.0.conv.conv.bias",
        ),
        (lambda folder: edit_weights(folder, lambda s: s.update(extra=torch.zeros(1))), "unknown tensor"),
        (
            lambda folder: edit_weights(folder, lambda s: s.update({"decoder.model.0.conv.conv.bias": torch.zeros(3)})),
            "is [3], expected [32]",
        ),
        (lambda folder: (folder / "mimi.json").write_text("{"), "mimi.json: not JSON"),
        (lambda folder: (folder / "mimi.json").write_text("{}"), "mimi.json: unusable"),
        (lambda folder: (folder / "mimi.json").write_text("[]"), "mimi.json: unusable"),
        (lambda folder: edit_config(folder, seanet={"n_filters": "many"}), "mimi.json: unusable"),
        (
            lambda folder: edit_bundle(folder, "sample_rate_hz = 24000", "sample_rate_hz = 16000"),
            "the bundle says 16000 Hz",
        ),
        (
            lambda folder: edit_bundle(folder, "audio_vocab_size = 35", "audio_vocab_size = 67"),
            "has 24000 Hz, 12.5 frames/s and 32 bins, the bundle says 24000 Hz, 12.5 frames/s and 64 bins",
        ),
        (
            lambda folder: edit_bundle(folder, "codebooks = 4", "codebooks = 5"),
            "has 4 codebooks, the bundle says 5",
        ),
    ],
)
def test_damaged_or_foreign_files_are_one_clear_line(folder, damage, words):
    damage(folder)
    with pytest.raises(PartError) as caught:
        load(folder)
    message = str(caught.value)
    assert message.startswith("mimi: ") and words in message and "\n" not in message


def test_a_device_that_is_not_there(folder):
    with pytest.raises(PartError, match="mimi: device cuda:99: cannot be used here"):
        load_mimi(load_bundle(str(folder)), "cuda:99")


def test_the_public_checkpoints_name_and_full_shape(tmp_path):
    """A file as kyutai/moshiko-pytorch-bf16 has it, with random weights: 32 codebooks, moshi's default config."""
    torch.manual_seed(0)
    random = loaders.get_mimi(None, num_codebooks=32)
    for quantizer in (random.quantizer.rvq_first, random.quantizer.rvq_rest):
        for layer in quantizer.vq.layers:
            layer._codebook.embedding_sum.normal_()
    save_file(random.state_dict(), tmp_path / PUBLIC_NAME)
    public = load_bundle("csm-1b")
    assert public.mimi.sources[0]["weights"] == PUBLIC_NAME
    ours = load_mimi(replace(public, mimi=replace(public.mimi, sources=({"weights": PUBLIC_NAME},), folder=tmp_path)))
    stock = loaders.get_mimi(tmp_path / PUBLIC_NAME, num_codebooks=32)
    codes = torch.randint(2048, (1, 32, 5))
    with torch.inference_mode():
        assert torch.equal(ours.decode(codes), stock.decode(codes))
        sound = torch.randn(1, 1, 9600)
        assert torch.equal(ours.encode(sound), stock.encode(sound))
    assert ours.encode(sound).shape == (1, 32, 5)


def test_nothing_of_it_is_compiled_whatever_threads_do(monkeypatch):
    """moshi's switch belongs to the process: two users of it that overlap would leave it as they like."""

    def compiled(function):
        raise AssertionError("compiled")

    monkeypatch.setattr(torch, "compile", compiled)
    wrapped = torch_compile_lazy(lambda: "as it is")
    first, second = no_compile(), no_compile()
    for step in (first.__enter__, second.__enter__, lambda: first.__exit__(None, None, None)):
        step()
        assert wrapped() == "as it is"
    second.__exit__(None, None, None)
    assert wrapped() == "as it is"
