"""Checkpoints of exactly the two public layouts, written with random weights, load; broken ones say why."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import threading
import time
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from models.bundle import load_bundle
from models.files import PartError
from services.backbone.model import build_model, init_random
from services.backbone.weights import load_model, save_sesame, sesame_config
from support.tiny_csm import make_stock, tiny_part
from support.transformers_names import to_transformers

SESAME = {"layout": "sesame", "config": "config.json", "weights": ["model.safetensors"]}
TRANSFORMERS = {
    "layout": "transformers",
    "weights": ["transformers-00001-of-00002.safetensors", "transformers-00002-of-00002.safetensors"],
}


@pytest.fixture
def sesame(tmp_path):
    """A part whose files are in Sesame's layout, and the model they came from."""
    part = dataclasses.replace(tiny_part(4), sources=(SESAME,), folder=tmp_path)
    model = init_random(build_model(part), seed=1)
    save_sesame(model, tmp_path)
    return part, model


@pytest.fixture
def transformers_files(tmp_path):
    """A part whose files transformers itself wrote, in two shards with the public names."""
    stock = make_stock(tiny_part(4))
    total = sum(t.numel() * t.element_size() for t in stock.state_dict().values())
    stock.save_pretrained(tmp_path, max_shard_size=int(total * 0.6))
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert [shard.name for shard in shards] == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for shard in shards:
        shard.rename(tmp_path / shard.name.replace("model", "transformers"))
    part = dataclasses.replace(tiny_part(4), sources=(TRANSFORMERS,), folder=tmp_path)
    return part, stock


def rewrite(path, change):
    """Load a safetensors file, let `change` edit its dict of tensors, write it back."""
    state = load_file(path)
    change(state)
    save_file(state, path)


def test_sesame_layout_has_the_public_names_and_config(sesame):
    part, _ = sesame
    with safe_open(part.folder / "model.safetensors", "pt") as file:
        names = set(file.keys())
        assert file.get_slice("audio_head").get_shape() == [3, 32, 67]
    # as in the public file: 9 tensors a layer, two norms, two embeddings, projection, two heads
    assert len(names) == 9 * (3 + 2) + 2 + 5
    assert {
        "backbone.layers.2.attn.output_proj.weight",
        "decoder.layers.1.mlp.w3.weight",
        "backbone.norm.scale",
        "decoder.layers.0.sa_norm.scale",
        "text_embeddings.weight",
        "audio_embeddings.weight",
        "projection.weight",
        "codebook0_head.weight",
        "audio_head",
    } <= names
    # as in the public config.json of CSM-1B, key by key
    assert sesame_config(load_bundle("csm-1b").generator) == {
        "audio_num_codebooks": 32,
        "audio_vocab_size": 2051,
        "text_vocab_size": 128256,
        "backbone_flavor": "llama-1B",
        "decoder_flavor": "llama-100M",
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sesame_files_load(sesame, dtype):
    part, model = sesame
    loaded = load_model(part, "cpu", dtype)
    for name, tensor in loaded.state_dict().items():
        assert tensor.device.type == "cpu" and tensor.dtype == dtype
        assert torch.equal(tensor, model.state_dict()[name].to(dtype)), name


def test_transformers_files_load(transformers_files):
    part, stock = transformers_files
    loaded = load_model(part, "cpu", torch.float32)
    theirs = stock.state_dict()
    for name, tensor in loaded.state_dict().items():
        renamed, laid_out = to_transformers(name, tensor, part)
        assert torch.equal(laid_out, theirs[renamed]), name


@pytest.mark.parametrize(
    "keep",
    ["depth_decoder.model.embed_tokens.weight", "backbone_model.embed_tokens.embed_audio_tokens.weight", "both"],
)
def test_tied_embeddings_load_under_either_name_or_both(transformers_files, keep):
    part, stock = transformers_files
    names = ("depth_decoder.model.embed_tokens.weight", "backbone_model.embed_tokens.embed_audio_tokens.weight")
    wanted = stock.state_dict()[names[0]].clone()
    for index, file in enumerate(TRANSFORMERS["weights"]):

        def only(state, index=index):
            for name in names:
                state.pop(name, None)
                if keep in (name, "both") and index == 0:
                    state[name] = wanted.clone()

        rewrite(part.folder / file, only)
    assert torch.equal(load_model(part).audio_embeddings.weight, wanted)


def test_untied_embeddings_are_refused(transformers_files):
    part, stock = transformers_files
    embeddings = stock.state_dict()["depth_decoder.model.embed_tokens.weight"].clone()
    other = embeddings + 1

    def untie(state):
        state["depth_decoder.model.embed_tokens.weight"] = other
        state["backbone_model.embed_tokens.embed_audio_tokens.weight"] = embeddings

    rewrite(part.folder / TRANSFORMERS["weights"][0], untie)
    rewrite(
        part.folder / TRANSFORMERS["weights"][1],
        lambda state: [
            state.pop(name) for name in list(state) if "embed_audio" in name or "model.embed_tokens.w" in name
        ],
    )
    with pytest.raises(PartError, match="differs from the backbone's audio embeddings"):
        load_model(part)


def test_the_second_layout_is_taken_when_the_first_is_absent(transformers_files):
    part, _ = transformers_files
    (part.folder / "config.json").unlink()  # transformers' own, not Sesame's
    part = dataclasses.replace(part, sources=(SESAME, TRANSFORMERS))
    assert load_model(part).codebook0_head.weight.shape == (67, 64)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_a_missing_file_names_part_file_and_remedy(sesame, file):
    part, _ = sesame
    (part.folder / file).unlink()
    with pytest.raises(PartError, match=rf"^generator: .*{file}: no such file; "):
        load_model(part)


@pytest.mark.parametrize("keep", [0, 5, 3000, -100])
def test_a_truncated_file_is_refused(sesame, keep):
    path = sesame[0].folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:keep])
    with pytest.raises(PartError, match=r"^generator: .*model\.safetensors: cannot be read .*fetch it again"):
        load_model(sesame[0])


def test_a_truncated_shard_is_refused(transformers_files):
    path = transformers_files[0].folder / TRANSFORMERS["weights"][1]
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(PartError, match=r"transformers-00002-of-00002\.safetensors: cannot be read"):
        load_model(transformers_files[0])


def test_a_tensor_of_another_shape_is_named(sesame):
    path = sesame[0].folder / "model.safetensors"
    rewrite(path, lambda state: state.update({"projection.weight": torch.zeros(32, 63)}))
    with pytest.raises(PartError, match=r"projection\.weight is \[32, 63\], expected \[32, 64\]"):
        load_model(sesame[0])


def test_a_missing_tensor_is_named(sesame):
    rewrite(sesame[0].folder / "model.safetensors", lambda state: state.pop("audio_head"))
    with pytest.raises(PartError, match="1 tensors missing: audio_head"):
        load_model(sesame[0])


@pytest.mark.parametrize("layout", ["sesame", "transformers_files"])
def test_an_unknown_tensor_is_named(layout, request):
    part, _ = request.getfixturevalue(layout)
    path = part.folder / part.sources[0]["weights"][0]
    rewrite(path, lambda state: state.update({"vocoder.weight": torch.zeros(1)}))
    with pytest.raises(PartError, match=r"unknown tensor vocoder\.weight"):
        load_model(part)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"audio_num_codebooks": 32}, "audio_num_codebooks is 32, the bundle says 4"),
        ({"audio_vocab_size": 2051}, "audio_vocab_size is 2051, the bundle says 67"),
        ({"text_vocab_size": 128256}, "text_vocab_size is 128256, the bundle says 96"),
        ({"backbone_flavor": "llama-1B"}, "backbone_flavor llama-1B is .*'dim': 2048"),
        ({"decoder_flavor": "llama-9T"}, "decoder_flavor 'llama-9T' is unknown"),
        ({"decoder_shape": {"layers": 9}}, "decoder_flavor custom is {'layers': 9}, the bundle says"),
    ],
)
def test_a_config_of_another_model_is_refused(sesame, change, message):
    path = sesame[0].folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(PartError, match=message):
        load_model(sesame[0])


@pytest.mark.parametrize("text", ["{", "[]", '{"architectures": ["CsmForConditionalGeneration"]}'])
def test_a_config_that_is_not_sesames_is_refused(sesame, text):
    (sesame[0].folder / "config.json").write_text(text)
    with pytest.raises(PartError, match=r"^generator: .*config\.json: (not JSON|has no audio_num_codebooks)"):
        load_model(sesame[0])


def test_random_weights_depend_on_the_seed_alone():
    part = tiny_part(4)
    first, again, other = (init_random(build_model(part), seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["audio_head"], other["audio_head"])


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("layout", ["sesame", "transformers"])
def test_full_csm_1b_loads_without_a_second_copy(tmp_path, layout):
    """CSM-1B's shapes (3.1 GB): every tensor arrives, and memory grows by little more than the model.

    The file holds fp16, so that every tensor must be cast; in the dtype asked for it would stay mapped.
    """
    part = dataclasses.replace(load_bundle("csm-1b").generator, folder=tmp_path)
    part = dataclasses.replace(part, sources=(SESAME if layout == "sesame" else TRANSFORMERS,))
    _write_full(part, layout)
    size = sum(t.numel() for t in build_model(part).state_dict().values()) * 2
    assert 3.0e9 < size < 3.3e9
    # A process of its own: what earlier tests freed would hide the growth.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
        grown = fresh.submit(_load_watched, part).result()
    # The greatest tensor is 0.53 GB and may exist twice; a watch that saw less than the model saw nothing.
    assert 0.95 * size < grown < size + 1.2e9


def _load_watched(part) -> int:
    """Load, check what arrived, and return by how many bytes memory grew at most."""
    peak = _PeakMemory()
    with peak:
        model = load_model(part, "cpu", torch.bfloat16)
    assert all(t.dtype == torch.bfloat16 and not t.is_meta for t in model.state_dict().values())
    assert model.audio_head[5, 7, 11] == 5  # what _write_full put there
    return peak.grown_bytes


def _write_full(part, layout):
    state = {
        name: torch.full(tensor.shape, 0.01, dtype=torch.float16)
        for name, tensor in build_model(part).state_dict().items()
    }
    state["audio_head"][5] = 5
    if layout == "sesame":
        (part.folder / "config.json").write_text(json.dumps(sesame_config(part)))
        save_file(state, part.folder / "model.safetensors")
        return
    renamed = [to_transformers(name, tensor, part) for name, tensor in state.items()]
    renamed.append(("codec_model.encoder.weight", torch.zeros(3)))
    half = len(renamed) // 2
    for file, tensors in zip(TRANSFORMERS["weights"], (renamed[:half], renamed[half:]), strict=True):
        save_file(dict(tensors), part.folder / file)


class _PeakMemory:
    """How much the process's own memory (not mapped files) grew at most while this was entered."""

    def __enter__(self):
        self._start, self._peak, self._stop = self._now(), 0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    @property
    def grown_bytes(self) -> int:
        return self._peak - self._start

    def _watch(self):
        while not self._stop.is_set():
            self._peak = max(self._peak, self._now())
            time.sleep(0.005)

    @staticmethod
    def _now() -> int:
        with open("/proc/self/status") as file:
            fields = dict(line.split(":", 1) for line in file)
        return int(fields["RssAnon"].split()[0]) * 1024
