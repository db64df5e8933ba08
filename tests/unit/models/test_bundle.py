"""Bundles by name and by folder, and what is said when they are wrong."""

import re
from pathlib import Path

import pytest

from models.bundle import known_bundles, load_bundle
from models.files import PartError

EMBEDDED = Path(__file__).parents[3] / "models" / "embedded" / "bundle.toml"


def test_the_two_that_ship(monkeypatch):
    assert list(known_bundles()) == ["csm-1b", "embedded", "noise"]
    monkeypatch.delenv("CSM_MODEL", raising=False)
    assert load_bundle().id == "embedded"
    monkeypatch.setenv("CSM_MODEL", "csm-1b")
    assert load_bundle().id == "csm-1b"


def test_csm_1b_has_the_shapes_that_sesame_published():
    bundle = load_bundle("csm-1b")
    assert (bundle.codebooks, bundle.samples_per_frame, bundle.codec_bins) == (32, 1920, 2048)
    backbone, decoder = bundle.generator.backbone, bundle.generator.decoder
    assert (backbone.layers, backbone.dim, backbone.heads, backbone.kv_heads, backbone.max_seq_len) == (
        16,
        2048,
        32,
        8,
        2048,
    )
    assert (decoder.layers, decoder.dim, decoder.heads, decoder.kv_heads) == (4, 1024, 8, 2)


def test_csm_1b_names_fixed_commits():
    bundle = load_bundle("csm-1b")
    parts = bundle.generator, bundle.text_tokenizer, bundle.mimi, bundle.watermark
    revisions = [source["revision"] for part in parts for source in part.sources]
    assert len(revisions) == 6 and all(re.fullmatch("[0-9a-f]{40}", revision) for revision in revisions)


@pytest.mark.parametrize("name", ["embedded", "noise", "csm-1b"])
def test_shapes_agree_with_each_other(name):
    bundle = load_bundle(name)
    assert bundle.generator.decoder.max_seq_len == bundle.codebooks + 1
    for shape in (bundle.generator.backbone, bundle.generator.decoder):
        assert shape.dim % shape.heads == 0 and shape.heads % shape.kv_heads == 0
    assert bundle.sample_rate_hz == bundle.frame_rate_hz * bundle.samples_per_frame
    assert bool(bundle.voices) == (name != "csm-1b")  # whose context gives the voice


def test_a_folder_of_the_users(tmp_path):
    (tmp_path / "bundle.toml").write_text(EMBEDDED.read_text().replace('id = "embedded"', 'id = "mine"', 1))
    bundle = load_bundle(str(tmp_path))
    assert (bundle.id, bundle.folder) == ("mine", tmp_path)


@pytest.mark.parametrize(
    "text, words",
    [
        (None, "no such bundle; set CSM_MODEL to one of csm-1b, embedded, noise or to a folder"),
        ("id = ", "not TOML"),
        ("", "bad or missing key 'generator'"),
        (EMBEDDED.read_text().replace("codebooks = 10", "", 1), "bad or missing key 'codebooks'"),
        (EMBEDDED.read_text().replace("layers = 8", "layer = 8", 1), "bad or missing key"),
    ],
)
def test_unusable_bundles_say_why(tmp_path, text, words):
    if text is not None:
        (tmp_path / "bundle.toml").write_text(text)
    with pytest.raises(PartError) as caught:
        load_bundle(str(tmp_path))
    message = str(caught.value)
    assert message.startswith("bundle: ") and words in message and "\n" not in message
    assert str(tmp_path) in message
