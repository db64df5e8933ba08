"""A wheel holds what a checkout holds: installed without the checkout, the bundle in the box is complete."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

LOOK = """
import json, sys
sys.path.insert(0, sys.argv[1])
import models.bundle
from csm.speech.v1 import speech_pb2
bundle = models.bundle.load_bundle("embedded")
_, config, weights = bundle.generator.resolve()
files = [config, *weights]
for part in (bundle.text_tokenizer, bundle.mimi, bundle.watermark):
    files += part.resolve().values()
print(json.dumps({
    "modules": [models.bundle.__file__, speech_pb2.__file__],
    "embedded": bundle.is_embedded,
    "bundles": models.bundle.known_bundles(),
    "sizes": {str(path): path.stat().st_size for path in files},
}))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The wheel of this source, unpacked by pip; built from a copy, since building writes beside what it reads."""
    source = tmp_path_factory.mktemp("source")
    for name in ("services", "gateway", "models", "protos"):
        # The training data (84 MB) is left out of the copy for time; its code stays, to be left out of the wheel.
        ignore = shutil.ignore_patterns("__pycache__", "result", "*.png")
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-c", "from setuptools import build_meta; build_meta.build_wheel('dist')"]
    subprocess.run(build, cwd=source, check=True, capture_output=True)
    (wheel,) = (source / "dist").glob("*.whl")
    target = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", target, wheel]
    subprocess.run(pip, check=True, capture_output=True)
    return target


def test_every_part_of_the_embedded_bundle_is_in_the_wheel(installed, tmp_path):
    done = subprocess.run(
        [sys.executable, "-I", "-c", LOOK, str(installed)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    seen = json.loads(done.stdout)
    assert all(Path(path).is_relative_to(installed) for path in [*seen["modules"], *seen["sizes"]])
    assert seen["embedded"] and seen["bundles"] == ["csm-1b", "embedded"]
    for path, size in seen["sizes"].items():
        assert size == (ROOT / Path(path).relative_to(installed)).stat().st_size


def test_training_is_not_in_the_wheel(installed):
    assert not (installed / "training").exists() and not (installed / "models/embedded/train").exists()


def test_files_beside_the_code_are_in_the_wheel(installed):
    listed = subprocess.run(["git", "ls-files", "gateway", "services"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a checkout")
    files = [name for name in listed.stdout.split() if not name.endswith((".md", ".png"))]
    assert any(name.endswith(".html") for name in files)
    assert [name for name in files if not (installed / name.removeprefix("gateway/client/")).exists()] == []
