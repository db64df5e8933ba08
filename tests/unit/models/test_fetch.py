"""The weights Job: what it leaves on a volume is what the services find there, and nothing else counts as done."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from models.bundle import load_bundle
from models.fetch import fetch
from models.files import PartError


def resolve_all(bundle) -> dict[str, Path]:
    _, config, weights = bundle.generator.resolve()
    files = {"config": config, **{path.name: path for path in weights}}
    for part in ("text_tokenizer", "mimi", "watermark"):
        files |= {f"{part} {role}": path for role, path in getattr(bundle, part).resolve().items()}
    return files


def test_a_bundle_with_weights_is_copied_whole_and_only_once(tmp_path):
    environ = {**os.environ, "CSM_MODEL": "embedded"}
    command = [sys.executable, "-m", "models.fetch", str(tmp_path)]
    first = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    copy = resolve_all(load_bundle(str(tmp_path / "embedded")))
    original = resolve_all(load_bundle("embedded"))
    assert copy.keys() == original.keys()
    for role, path in copy.items():
        assert path.is_relative_to(tmp_path) and path.read_bytes() == original[role].read_bytes()
    assert "embedded: 10 files" in first.stdout

    times = {path: path.stat().st_mtime_ns for path in copy.values()}
    truncated = copy["mimi weights"]
    truncated.write_bytes(truncated.read_bytes()[:1000])
    subprocess.run(command, env=environ, capture_output=True, check=True)
    assert truncated.read_bytes() == original["mimi weights"].read_bytes()  # a damaged file is made good
    assert all(path.stat().st_mtime_ns == then for path, then in times.items() if path != truncated)
    assert not list(tmp_path.rglob("*.partial"))


def test_hub_files_come_from_commits_alone(tmp_path):
    bundle = load_bundle("csm-1b")
    branch = dataclasses.replace(
        bundle, mimi=dataclasses.replace(bundle.mimi, sources=({**bundle.mimi.sources[0], "revision": "main"},))
    )
    with pytest.raises(PartError, match="revision 'main' is not a commit"):
        fetch(branch, tmp_path)


def test_hub_files_that_cannot_be_had_end_the_job_with_one_line(tmp_path):
    environ = {**os.environ, "CSM_MODEL": "csm-1b", "HF_HUB_OFFLINE": "1"}
    environ.pop("HF_HOME", None)
    command = [sys.executable, "-m", "models.fetch", str(tmp_path)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True)
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("models.fetch: generator: sesame/csm-1b:config.json")


def test_what_the_job_left_on_the_volume_is_enough_for_pods_that_are_offline(tmp_path):
    """The hub's own cache, at the commits of csm-1b, in the folder that the Job and the pods share (HF_HOME)."""
    bundle = load_bundle("csm-1b")
    for part in ("generator", "text_tokenizer", "mimi", "watermark"):
        source = getattr(bundle, part).sources[0]
        names = [value for key, value in source.items() if key not in ("repo", "revision", "layout", "weights")]
        weights = source.get("weights", [])
        snapshot = (
            tmp_path / "hub/hub" / f"models--{source['repo'].replace('/', '--')}" / "snapshots" / source["revision"]
        )
        for name in [*names, *(weights if isinstance(weights, list) else [weights])]:
            (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
            (snapshot / name).write_bytes(b"weights")
    environ = {**os.environ, "CSM_MODEL": "csm-1b", "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    command = [sys.executable, "-m", "models.fetch", str(tmp_path)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    assert "csm-1b: 8 files" in done.stdout
    assert not (tmp_path / "csm-1b").exists()  # its bundle.toml is in the images
