"""The three distributions: what is in each, that together they hold what a checkout holds, and what they say of it."""

from __future__ import annotations

import email
import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from csm.version import __version__

ROOT = Path(__file__).parents[2]
FOLDERS = {"csm_client": ROOT / "gateway/client", "csm_serve": ROOT, "csm_model_embedded": ROOT / "models/embedded"}

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
    "bundles": sorted(models.bundle.known_bundles()),
    "sizes": {str(path): path.stat().st_size for path in files},
}))
"""


def build(folder: Path, target: str, out: Path) -> Path:
    """`target` (wheel or sdist) of the project in `folder`."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(out)]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def wheels(tmp_path_factory) -> dict[str, Path]:
    return {name: build(folder, "wheel", tmp_path_factory.mktemp(name)) for name, folder in FOLDERS.items()}


@pytest.fixture(scope="module")
def installed(wheels, tmp_path_factory) -> Path:
    """All three, unpacked by pip."""
    target = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target)]
    subprocess.run([*pip, *wheels.values()], check=True, capture_output=True)
    return target


def metadata(wheel: Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as file:
        (name,) = (name for name in file.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(file.read(name))


def names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as file:
        return file.namelist()


@pytest.mark.parametrize("name", FOLDERS)
def test_each_says_its_version_and_licence(wheels, name):
    found = metadata(wheels[name])
    assert found["Version"] == __version__ == "0.2.0"
    assert found["License-Expression"] == "Apache-2.0"
    assert "LICENSE" in found.get_all("License-File")
    with zipfile.ZipFile(wheels[name]) as file:
        for path in found.get_all("License-File"):
            (member,) = (member for member in file.namelist() if member.endswith(f"licenses/{path}"))
            assert file.read(member) == (ROOT / path).read_bytes()


def test_the_client_is_small_and_has_the_contracts(wheels):
    assert wheels["csm_client"].stat().st_size < 1_000_000
    tops = {path.partition("/")[0] for path in names(wheels["csm_client"])}
    assert tops == {"csm", "csm_client", f"csm_client-{__version__}.dist-info"}
    assert {"csm_client/py.typed", "csm/py.typed", "csm/speech/v1/speech_pb2.pyi"} <= set(names(wheels["csm_client"]))
    required = {re.split(r"[~>=<]", line)[0] for line in metadata(wheels["csm_client"]).get_all("Requires-Dist")}
    assert required == {"grpcio", "protobuf", "googleapis-common-protos", "opentelemetry-api"}


def test_the_serving_wheel_has_no_weights_and_asks_for_the_same_version(wheels):
    assert wheels["csm_serve"].stat().st_size < 2_000_000
    tops = {path.partition("/")[0] for path in names(wheels["csm_serve"])}
    assert tops == {"services", "gateway", "models", f"csm_serve-{__version__}.dist-info"}
    own = [line for line in metadata(wheels["csm_serve"]).get_all("Requires-Dist") if line.startswith("csm-")]
    own = [line.partition(";")[0] for line in own if not line.startswith("csm-serve")]
    assert sorted(own) == [f"csm-client~={__version__}", f"csm-model-embedded~={__version__}"]


def test_every_part_of_the_embedded_bundle_is_installed(installed, tmp_path):
    done = subprocess.run(
        [sys.executable, "-I", "-c", LOOK, str(installed)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    seen = json.loads(done.stdout)
    assert all(Path(path).is_relative_to(installed) for path in [*seen["modules"], *seen["sizes"]])
    assert seen["embedded"] and seen["bundles"] == ["csm-1b", "embedded"]
    for path, size in seen["sizes"].items():
        source = Path(path).relative_to(installed / "csm_model_embedded")
        assert size == (ROOT / "models/embedded" / source).stat().st_size


def test_without_the_model_it_says_how_to_get_it(wheels, tmp_path):
    target = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target)]
    subprocess.run([*pip, wheels["csm_client"], wheels["csm_serve"]], check=True, capture_output=True)
    done = subprocess.run([sys.executable, "-I", "-c", LOOK, target], cwd=tmp_path, capture_output=True, text=True)
    assert "embedded: not installed; pip install 'csm-serve[embedded]'" in done.stderr


def test_recipes_are_not_installed(installed):
    assert not (installed / "training").exists() and not (installed / "models/noise").exists()


def test_files_beside_the_code_are_installed(installed):
    listed = subprocess.run(
        ["git", "ls-files", "gateway", "services", "protos/csm"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("not a checkout")
    packaging = ("README.md", "LICENSE", "pyproject.toml", "hatch_build.py")
    files = [name for name in listed.stdout.split() if not name.endswith((".md", ".png", *packaging))]
    assert any(name.endswith(".html") for name in files)
    places = [re.sub(r"^(gateway/client|protos)/", "", name) for name in files]
    assert [place for place in places if not (installed / place).exists()] == []


def test_a_source_distribution_of_the_client_builds_the_same_wheel(wheels, tmp_path):
    shutil.unpack_archive(
        build(ROOT / "gateway/client", "sdist", tmp_path / "sdist"), tmp_path
    )  # tarfile's filters are not in 3.11.2
    wheel = build(tmp_path / f"csm_client-{__version__}", "wheel", tmp_path / "wheel")
    assert sorted(names(wheel)) == sorted(names(wheels["csm_client"]))


def test_every_extra_is_made_of_others_or_of_packages():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for requirement in (line for lines in extras.values() for line in lines):
        if own := re.fullmatch(r"csm-serve\[([\w,]+)\]", requirement):
            assert set(own[1].split(",")) <= set(extras)
