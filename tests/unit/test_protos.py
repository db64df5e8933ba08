"""The contracts: lint, format, and stubs that are what the .proto files say."""

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
        path.relative_to(ROOT / "protos"): path.read_text()
        for path in (ROOT / "protos" / "csm").rglob("*_pb2*.py*")
        if path.suffix in (".py", ".pyi")
    }
    assert sorted(fresh) == sorted(committed)
    drifted = [str(path) for path in fresh if fresh[path] != committed[path]]
    assert not drifted, f"run 'make protos': {drifted}"
