"""The Dockerfiles against the code and the manifests. That they build is for `make images` to say."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import os
import re
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from csm.version import __version__
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from support.manifests.rendered import DEPLOY, ROOT, SERVICES, container, one, pod, pods, render

requirements = runpy.run_path(str(DEPLOY / "images/requirements.py"))["requirements"]
IMAGES = (*SERVICES, "weights")
# STORE is an argument of the build: s3, or s3,gcs.
EXTRAS = {name: name for name in SERVICES} | {"weights": "models,s3", "gateway": "gateway,http,s3"}
MODULES = {name: f"services.{name}" for name in SERVICES} | {"gateway": "gateway", "weights": "models.fetch"}
NO_DEPS = {"tokenizer": "moshi", "codec": "moshi", "watermark": "silentcipher"}


def dockerfile(name: str) -> str:
    return (DEPLOY / f"images/{name}.Dockerfile").read_text()


def stages(name: str) -> list[str]:
    return re.split(r"^FROM ", dockerfile(name), flags=re.MULTILINE)[1:]


def copied(name: str) -> list[tuple[list[str], str]]:
    """What is copied from the checkout, and where to."""
    lines = re.findall(r"^COPY ((?!--from).+)$", dockerfile(name), re.MULTILINE)
    return [(words[:-1], words[-1]) for words in (line.split() for line in lines)]


def test_there_is_one_for_every_image_of_the_manifests():
    assert {path.name.split(".")[0] for path in (DEPLOY / "images").glob("*.Dockerfile")} == set(IMAGES)


@pytest.mark.parametrize("name", IMAGES)
def test_hadolint_finds_nothing(name):
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, DEPLOY / f"images/{name}.Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", IMAGES)
def test_it_is_built_in_stages_on_a_base_that_the_builder_chooses(name):
    build, final = stages(name)
    assert build.startswith("${BASE} AS build\n") and final.startswith("${BASE}\n")
    assert dockerfile(name).index("ARG BASE=") < dockerfile(name).index("FROM ")
    assert "pip install" not in final
    assert not re.search(r"https?://|--index-url|--find-links|--trusted-host", dockerfile(name))


@pytest.mark.parametrize("name", IMAGES)
def test_it_installs_its_own_dependencies_and_no_others(name):
    installs = re.findall(r"pip install (.+?)(?: \\)?$", dockerfile(name), re.MULTILINE)
    assert installs[0] == "-c constraints.txt -r requirements.txt"
    (asked,) = re.findall(r'requirements\.py "?([\w,$]+?)"? > requirements\.txt', dockerfile(name))
    store = re.findall(r"^ARG STORE=(\w+)$", stages(name)[0], re.MULTILINE)
    assert asked.replace("$STORE", *store) == EXTRAS[name] if store else asked == EXTRAS[name]
    pinned = re.findall(r"grep '\^(\w+)=='", dockerfile(name))
    assert pinned == ([NO_DEPS[name]] if name in NO_DEPS else [])
    assert installs[1:] == (["--no-deps -r nodeps.txt"] if name in NO_DEPS else [])
    lines = requirements(EXTRAS[name])
    assert not [line for line in lines if line.startswith("csm-")]
    assert ("safetensors>=0.5" in lines) is (name != "gateway") and "grpcio>=1.74" in lines
    names = {re.split(r"[=<>]", line)[0] for line in (ROOT / "requirements-nodeps.txt").read_text().splitlines()}
    assert set(pinned) <= names


@pytest.mark.parametrize("name", IMAGES)
def test_it_runs_its_own_module_as_the_manifests_say(name):
    (entry,) = re.findall(r'^ENTRYPOINT \["python", "-m", "([\w.]+)"\]$', dockerfile(name), re.MULTILINE)
    assert entry == MODULES[name]
    module = importlib.util.find_spec(entry if entry == "models.fetch" else f"{entry}.__main__")
    assert module is not None
    # The file of that module is copied into the image, to where Python looks for it.
    file = Path(module.origin).relative_to(ROOT)
    assert any(
        ROOT / file in [ROOT / found for found in ROOT.glob(source)] or file.is_relative_to(source)
        for sources, target in copied(name)
        for source in sources
        if target.startswith("/opt/csm/")
    )
    assert "PYTHONPATH=/opt/csm " in dockerfile(name)
    (user,) = re.findall(r"^USER (\d+):(\d+)$", dockerfile(name), re.MULTILINE)
    for manifest in pods(render("overlays/gpu")):
        context = pod(manifest)["securityContext"]
        assert (str(context["runAsUser"]), str(context["runAsGroup"])) == user != ("0", "0")


@pytest.mark.parametrize("name", IMAGES)
def test_what_it_copies_is_there_and_holds_no_weights(name):
    weights = {".safetensors", ".ckpt", ".pt", ".bin", ".pth"}
    for sources, _ in copied(name):
        for source in sources:
            found = list(ROOT.glob(source))
            assert found, f"no {source}"
            files = [file for path in found for file in ([path] if path.is_file() else path.rglob("*"))]
            assert name == "weights" or not [file for file in files if file.suffix in weights]


@pytest.mark.parametrize("name", [name for name in IMAGES if name != "weights"])
def test_a_stage_is_not_given_the_others(name):
    code = {
        source
        for sources, target in copied(name)
        for source in sources
        if source.startswith(("services/", "gateway")) and target.startswith("/opt/")
    }
    own = {"gateway", "gateway/client/csm_client"} if name == "gateway" else {f"services/{name}"}
    shared = {"services/__init__.py", "services/runtime"} | (set() if name == "gateway" else {"services/engine"})
    assert code == shared | own


def imported(module: str) -> set[Path]:
    """Files of this project that a module imports, and what those import, wherever in the file it stands."""
    found: set[Path] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, AttributeError, ValueError):
            continue  # a name of a module's, not a module
        if spec is None or not spec.origin or not Path(spec.origin).is_relative_to(ROOT):
            continue
        file = Path(spec.origin).relative_to(ROOT)
        if file in found or file.parts[0] == ".venv" or file.suffix != ".py":
            continue
        found.add(file)
        for node in ast.walk(ast.parse((ROOT / file).read_text())):
            if isinstance(node, ast.Import):
                waiting += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                waiting += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found


@pytest.mark.parametrize("name", IMAGES)
def test_all_that_it_imports_is_copied(name):
    modules = [f"{MODULES[name]}.__main__"] if name != "weights" else [MODULES[name]]
    if name == "gateway":
        modules += ["gateway.http.__main__"]
    sources = [
        ROOT / source for sources, target in copied(name) for source in sources if target.startswith("/opt/csm/")
    ]
    there = {path for source in sources for path in ROOT.glob(str(source.relative_to(ROOT)))}
    needed = set().union(*map(imported, modules))
    assert len(needed) > 2
    missing = {str(file) for file in needed if not any((ROOT / file).is_relative_to(path) for path in there)}
    assert not missing


def test_the_build_context_is_what_is_copied():
    """.dockerignore lets in what the Dockerfiles copy: the first part of every path is allowed by name."""
    allowed = set(re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE))
    for name in IMAGES:
        for sources, _ in copied(name):
            for source in sources:
                assert any(source == entry or source.startswith(f"{entry}/") for entry in allowed), source
    assert (ROOT / ".dockerignore").read_text().splitlines()[1] == "*"


def test_a_process_that_still_imports_heeds_sigterm():
    """As process 1 it has no default to fall back on: what counts is that a handler is there before all else."""
    look = "import signal; print(callable(signal.getsignal(signal.SIGTERM)))"
    environ = {"PYTHONPATH": str(DEPLOY / "images")}
    done = subprocess.run([sys.executable, "-c", look], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"
    raised = "import signal; signal.raise_signal(signal.SIGTERM)"
    ended = subprocess.run([sys.executable, "-c", raised], env=environ, capture_output=True)
    assert ended.returncode == 128 + signal.SIGTERM
    assert all("COPY deploy/images/sitecustomize.py /opt/csm/" in dockerfile(name) for name in IMAGES)


def test_the_job_fetches_into_the_volume():
    job = one(render("overlays/gpu"), "Job", "csm-weights")
    (spec,) = pod(job)["containers"]
    (mount,) = (mount for mount in spec["volumeMounts"] if mount["name"] == "weights")
    assert spec["args"] == [mount["mountPath"]] and not mount.get("readOnly")


def test_pushed_images_are_named_by_digest_in_every_overlay(tmp_path):
    """The component that `make images push=…` writes, listed by an overlay, on top of what is there."""
    script = runpy.run_path(str(DEPLOY / "images/build.py"))
    digests = {name: f"sha256:{number:064x}" for number, name in enumerate(IMAGES)}
    (tmp_path / "images").mkdir()
    written = script["lock"]("registry.example/team/", "0.2.0", digests)
    (tmp_path / "images/kustomization.yaml").write_text(written)
    (tmp_path / "top").mkdir()
    base = os.path.relpath(DEPLOY / "overlays/one-card", (tmp_path / "top").resolve())
    face = os.path.relpath(DEPLOY / "components/http-tls", (tmp_path / "top").resolve())
    top = {"resources": [base], "components": [face, "../images"]}
    (tmp_path / "top/kustomization.yaml").write_text(yaml.safe_dump(top))
    kubectl = Path(sys.executable).with_name("kubectl")
    text = subprocess.run([kubectl, "kustomize", tmp_path / "top"], capture_output=True, text=True, check=True).stdout
    named = {container(manifest)["image"] for manifest in pods(list(yaml.safe_load_all(text)))}
    assert named == {f"registry.example/team/csm-{name}@{digest}" for name, digest in digests.items()}


@pytest.mark.parametrize("tool", ["buildah", "podman", "docker"])
def test_images_say_what_they_are_and_for_which_machine(tool):
    script = runpy.run_path(str(DEPLOY / "images/build.py"))
    argv = script["command"](tool, "gateway", "dev", "", [], "/pip.conf", [], platform="linux/arm64", revision="abc")
    assert f"--label=org.opencontainers.image.version={__version__}" in argv
    assert "--label=org.opencontainers.image.revision=abc" in argv
    assert "--label=org.opencontainers.image.title=csm-gateway" in argv and "--platform=linux/arm64" in argv


def test_a_bill_of_materials_has_packages_of_both_kinds(monkeypatch):
    monkeypatch.syspath_prepend(str(DEPLOY / "images"))
    script = runpy.run_path(str(DEPLOY / "images/sbom.py"))
    found = script["of_debian"]("libc6 2.36-9+deb12u14 amd64\nzlib1g 1:1.2.13 amd64\n")
    assert [one["purl"] for one in found] == [
        "pkg:deb/debian/libc6@2.36-9+deb12u14?arch=amd64",
        "pkg:deb/debian/zlib1g@1:1.2.13?arch=amd64",
    ]
    if not Path(sys.executable).with_name("cyclonedx-py").exists():
        pytest.skip("cyclonedx-bom is not installed")
    document = script["of_python"]("grpcio==1.85.1\nnumpy==2.4.1\n")
    assert document["bomFormat"] == "CycloneDX"
    assert {(one["name"], one["version"]) for one in document["components"]} == {
        ("grpcio", "1.85.1"),
        ("numpy", "2.4.1"),
    }


def closure(extras: str) -> dict[str, importlib.metadata.Distribution]:
    """What an image installs, by name, as it is installed here: the requirements and what they require."""
    found: dict[str, importlib.metadata.Distribution] = {}
    waiting = [Requirement(line) for line in requirements(extras)]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in found or not (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
            continue
        found[name] = importlib.metadata.distribution(name)
        waiting += [Requirement(line) for line in found[name].requires or ()]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", EXTRAS)
def test_what_is_compiled_has_a_wheel_for_arm64(name):
    """By pip, of the pinned versions. What is pure Python needs none. Asks the package index."""
    compiled = [
        f"{dist.name}=={dist.version.partition('+')[0]}"
        for dist in closure(EXTRAS[name]).values()
        if not re.search(r"^Tag: .*-none-any$", dist.read_text("WHEEL") or "", re.MULTILINE)
    ]
    assert any(each.startswith("protobuf==") for each in compiled)
    platforms = [f"--platform=manylinux_2_{minor}_aarch64" for minor in (17, 24, 26, 27, 28, 31, 34)]
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--dry-run",
        "--ignore-installed",
        "--no-deps",
        "--only-binary=:all:",
    ]
    command += ["--target=none", "--python-version=3.11", "--implementation=cp", "--platform=manylinux2014_aarch64"]
    done = subprocess.run([*command, *platforms, *compiled], capture_output=True, text=True, cwd="/tmp")
    assert done.returncode == 0, done.stderr
