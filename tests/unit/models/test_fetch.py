"""The weights Job: what it leaves on a volume is what the services find there, and nothing else counts as done."""

import contextlib
import dataclasses
import errno
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from models.bundle import load_bundle
from models.fetch import fetch, locked
from models.files import PartError
from models.store import StoreError


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


def test_each_version_has_a_folder_and_what_runs_keeps_its_files(tmp_path):
    """CSM_MODEL=FOLDER/<version>/<name>, for the services too. A folder of one version takes no other."""
    command = [sys.executable, "-m", "models.fetch", str(tmp_path)]

    def run(version: str) -> subprocess.CompletedProcess[str]:
        environ = {**os.environ, "CSM_MODEL": f"{tmp_path}/{version}/embedded"}
        return subprocess.run(command, env=environ, capture_output=True, text=True)

    def content(version: str) -> dict[str, bytes]:
        return {str(p.relative_to(tmp_path)): p.read_bytes() for p in (tmp_path / version).rglob("*") if p.is_file()}

    assert "embedded: 10 files" in run("1").stdout
    assert resolve_all(load_bundle(f"{tmp_path}/1/embedded")).keys() == resolve_all(load_bundle("embedded")).keys()
    assert subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=tmp_path / "1").returncode == 0
    first = content("1")

    other = tmp_path / "image/embedded"  # of the next release
    shutil.copytree(load_bundle("embedded").folder, other)
    tokenizer = other / "tokenizer.json"
    tokenizer.write_bytes(tokenizer.read_bytes() + b" ")
    with pytest.raises(StoreError, match="1 holds another version of these files; name a new folder in CSM_MODEL"):
        fetch(load_bundle(str(other)), tmp_path / "1", one_version=True)
    assert content("1") == first
    fetch(load_bundle(str(other)), tmp_path / "2", one_version=True)
    assert content("1") == first
    assert (tmp_path / "2/embedded/tokenizer.json").read_bytes() == tokenizer.read_bytes()

    (tmp_path / "1/embedded/tokenizer.json").write_bytes(b"")  # damaged, of the same version
    assert run("1").returncode == 0 and content("1") == first
    refused = run("2")  # with the old image, as by a rollback of the image alone
    assert (
        refused.returncode == 1 and refused.stderr.startswith("models.fetch: ") and "another version" in refused.stderr
    )


@pytest.mark.parametrize("model", ["{}", "{}/../embedded", "{}/1/unknown"])
def test_a_place_that_names_no_bundle_is_refused(tmp_path, model):
    environ = {**os.environ, "CSM_MODEL": model.format(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "models.fetch", str(tmp_path)], env=environ, capture_output=True, text=True
    )
    (line,) = done.stderr.strip().splitlines()
    assert done.returncode == 1 and "no such bundle" in line
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


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


def start(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "models.fetch", str(folder)]
    environ = {**os.environ, "CSM_MODEL": "embedded"}
    return subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_of_two_pods_on_a_node_one_waits_for_the_other(tmp_path):
    with locked(tmp_path):
        pods = [start(tmp_path) for _ in range(2)]
        for pod in pods:  # both have come to the lock, and neither goes on
            assert pod.stdout is not None
            assert "another process fills" in pod.stdout.readline()
        assert not (tmp_path / "embedded").exists() and all(pod.poll() is None for pod in pods)
    for pod in pods:
        out, error = pod.communicate(timeout=60)
        assert pod.returncode == 0 and "embedded: 10 files" in out, error
    # One that is killed in the middle keeps no other waiting.
    with locked(tmp_path):
        waiting = start(tmp_path)
        assert waiting.stdout is not None and waiting.stdout.readline()
        waiting.kill()
        waiting.communicate()
    with locked(tmp_path):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EIO])
def test_a_volume_without_locks_is_filled_without(tmp_path, monkeypatch, capsys, number):
    """As NFS without a lock daemon answers, or Lustre mounted without flock. A disk that fails is another matter."""

    def flock(file, how):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("models.fetch.fcntl.flock", flock)
    with pytest.raises(OSError, match=os.strerror(number)) if number == errno.EIO else contextlib.nullcontext():
        with locked(tmp_path):
            assert "has no locks" in capsys.readouterr().out


def test_a_damaged_file_of_the_hubs_cache_is_not_taken(tmp_path, monkeypatch):
    """The cache names files by their digests; the hub is away, so what was thrown out stays away."""
    data = {"config.json": b"{}", "model.safetensors": b"weights", "tokenizer.json": b"[]", "mirrored.json": b"1"}
    names = {name: hashlib.sha256(content).hexdigest() for name, content in data.items()}
    names["config.json"] = hashlib.sha1(b"blob 2\0{}").hexdigest()  # as git names small files
    names["mirrored.json"] = hashlib.sha1(b"1").hexdigest()
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshots").mkdir()
    paths = []
    for name, content in data.items():
        (tmp_path / "blobs" / names[name]).write_bytes(content)
        (tmp_path / "snapshots" / name).symlink_to(f"../blobs/{names[name]}")
        paths.append(tmp_path / "snapshots" / name)

    def resolve(bundle):
        for path in paths:
            if not path.is_file():
                raise PartError("generator", path.name, "not in the local cache and the hub cannot be reached", "")
        return paths

    monkeypatch.setattr("models.fetch._resolve", resolve)
    bundle = load_bundle("csm-1b")
    assert fetch(bundle, tmp_path / "node") == paths
    for name in ("config.json", "model.safetensors", "mirrored.json"):
        blob = tmp_path / "blobs" / names[name]
        blob.write_bytes(b"[]")
        with pytest.raises(PartError, match=name):
            fetch(bundle, tmp_path / "node")
        assert not blob.exists()
        blob.write_bytes(data[name])
    assert fetch(bundle, tmp_path / "node") == paths
