"""Files that are missing, gated or out of reach: one line that names part, file and remedy.

The hub's own errors are raised by a stand-in for its download function, as the library raises them.
"""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from huggingface_hub import errors, hf_hub_download

from models.bundle import load_bundle
from models.files import FileRef, PartError, first_available

MIMI = "tokenizer-e351c8d8-checkpoint125.safetensors"


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    """A hub cache of our own, and no network: a download that is not simulated fails the test."""
    import huggingface_hub

    def refuse(*args, **kwargs):
        raise AssertionError("a download was tried")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def simulate(monkeypatch, error):
    def download(*args, **kwargs):
        raise error

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)


def response(status):
    """As much of an HTTP response as the library's errors look at, whichever HTTP client it uses."""
    return SimpleNamespace(status_code=status, headers={}, request=None)


def hub_ref(revision="main"):
    return FileRef("mimi", MIMI, None, repo="kyutai/moshiko-pytorch-bf16", revision=revision)


def test_a_local_file(tmp_path):
    (tmp_path / "weights").write_bytes(b"x")
    assert FileRef("mimi", "weights", tmp_path).resolve() == tmp_path / "weights"


def test_a_missing_local_file(tmp_path):
    with pytest.raises(PartError) as caught:
        FileRef("generator", "model.safetensors", tmp_path).resolve()
    assert str(caught.value) == (
        f"generator: {tmp_path / 'model.safetensors'}: no such file; put the file there or correct bundle.toml"
    )


def test_a_missing_part_of_the_noise_bundle_names_the_script(tmp_path):
    bundle = load_bundle("noise")
    folder = tmp_path / "noise"
    with pytest.raises(PartError, match=r"run 'python -m training\.noise\.build'"):
        replace(bundle.mimi, folder=folder).resolve()


def test_a_file_in_the_hubs_cache_is_used_without_the_network(empty_cache):
    """The layout that huggingface_hub itself reads: refs/<revision> names a commit, snapshots hold files."""
    repo = empty_cache / "models--kyutai--moshiko-pytorch-bf16"
    commit = "0" * 40
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    (repo / "snapshots" / commit).mkdir(parents=True)
    (repo / "snapshots" / commit / MIMI).write_bytes(b"x")
    assert hub_ref().resolve() == repo / "snapshots" / commit / MIMI


@pytest.mark.parametrize(
    "error, words",
    [
        (
            errors.GatedRepoError("gated", response=response(403)),
            ["the repository is gated", "accept its licence", "HF_TOKEN", "kyutai/moshiko-pytorch-bf16"],
        ),
        (
            errors.RepositoryNotFoundError("no", response=response(404)),
            ["not found or is private", "HF_TOKEN"],
        ),
        (
            errors.RevisionNotFoundError("no", response=response(404)),
            ["no revision main", "revision in bundle.toml"],
        ),
        (
            errors.RemoteEntryNotFoundError("no", response=response(404)),
            ["the repository has no such file", "bundle.toml"],
        ),
        (
            errors.LocalEntryNotFoundError("offline"),
            ["not in the local cache", f"hf download kyutai/moshiko-pytorch-bf16 {MIMI}"],
        ),
        (errors.OfflineModeIsEnabled("offline"), ["not in the local cache", "hf download"]),
        (errors.HfHubHTTPError("500", response=response(500)), ["the hub cannot be reached"]),
        (ConnectionError("refused"), ["the hub cannot be reached", "CSM_MODEL"]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_hub_errors_say_what_to_do(empty_cache, monkeypatch, error, words):
    simulate(monkeypatch, error)
    with pytest.raises(PartError) as caught:
        hub_ref().resolve()
    message = str(caught.value)
    assert message.startswith(f"mimi: kyutai/moshiko-pytorch-bf16:{MIMI}: ") and "\n" not in message
    for word in words:
        assert word in message


def test_the_real_hub_library_offline(empty_cache, monkeypatch):
    """Not simulated: huggingface_hub in offline mode with an empty cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", hf_hub_download)
    with pytest.raises(PartError, match=r"not in the local cache .*'hf download kyutai/moshiko-pytorch-bf16"):
        hub_ref().resolve()


def test_the_first_source_that_is_there_is_taken(tmp_path):
    (tmp_path / "second").write_bytes(b"x")
    refs = [[FileRef("generator", name, tmp_path)] for name in ("first", "second")]
    assert first_available("generator", refs) == (1, [tmp_path / "second"])


def test_no_source_at_all_names_every_place(tmp_path):
    refs = [[FileRef("generator", name, tmp_path)] for name in ("first", "second")]
    with pytest.raises(PartError) as caught:
        first_available("generator", refs)
    for words in ("generator: ", str(tmp_path / "first"), str(tmp_path / "second"), "no such file"):
        assert words in str(caught.value)


def test_text_tokenizer_of_csm_1b_comes_from_either_place(empty_cache, monkeypatch):
    simulate(monkeypatch, errors.GatedRepoError("gated", response=response(403)))
    with pytest.raises(PartError) as caught:
        load_bundle("csm-1b").text_tokenizer.resolve()
    for words in (
        "text_tokenizer: ",
        "meta-llama/Llama-3.2-1B:tokenizer.json",
        "sesame/csm-1b:tokenizer.json",
        "HF_TOKEN",
    ):
        assert words in str(caught.value)
