"""The contracts: lint, format, and stubs that are what the .proto files say."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUF = Path(sys.executable).parent / "buf"


@pytest.mark.parametrize("arguments", [["lint"], ["format", "-d", "--exit-code"]])
def test_buf_finds_nothing(arguments):
    run = subprocess.run([BUF, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_committed_stubs_are_what_the_generator_writes(tmp_path):
    run = subprocess.run([sys.executable, ROOT / "protos" / "generate.py", tmp_path], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    fresh = {path.relative_to(tmp_path): path.read_text() for path in tmp_path.rglob("*.py*")}
    committed = {
        path.relative_to(base): path.read_text()
        for base, folder in ((ROOT / "protos", "csm"), (ROOT, "gateway/riva"))
        for path in (base / folder).rglob("*_pb2*.py*")
        if path.suffix in (".py", ".pyi")
    }
    assert sorted(fresh) == sorted(committed)
    drifted = [str(path) for path in fresh if fresh[path] != committed[path]]
    assert not drifted, f"run 'make protos': {drifted}"


RELEASE = ROOT / "protos/release.binpb"
MUTATIONS = {
    "a field's number": ("codec/v1/codec.proto", r"(?<== )1(?=;)", "77"),
    "a field's name": ("common/v1/common.proto", r"\bcodes\b", "tokens"),
    "a method's name": ("tokenizer/v1/tokenizer.proto", r"\brpc EncodeAudio\b", "rpc EncodeSound"),
    "an enum's value": ("common/v1/common.proto", r"FINISH_REASON_MAX_LENGTH", "FINISH_REASON_FULL"),
    "a message": ("speech/v1/speech.proto", r"\bListVoicesResponse\b", "VoicesResponse"),
}


@pytest.mark.parametrize("where", MUTATIONS)
def test_what_breaks_a_caller_of_the_last_release_is_found(tmp_path, where):
    """The image itself, so that a release that was never read in would be found out too."""
    shutil.copytree(ROOT / "protos", tmp_path / "protos", ignore=shutil.ignore_patterns("*.py*"))
    shutil.copy(ROOT / "buf.yaml", tmp_path)
    command = [BUF, "breaking", "--against", RELEASE]
    whole = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert whole.returncode == 0, whole.stdout + whole.stderr
    name, old, new = MUTATIONS[where]
    file = tmp_path / "protos/csm" / name
    text, count = re.subn(old, new, file.read_text())
    assert count
    file.write_text(text)
    mutated = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert mutated.returncode == 100 and Path(name).name in mutated.stdout
