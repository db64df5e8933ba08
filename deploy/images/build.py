"""`make images`: build the image of each service with buildah, podman or docker, whichever is here.

    python3 deploy/images/build.py [--base IMAGE] [--tag TAG] [--arg NAME=VALUE …] [--platform linux/arm64] [--push PREFIX] [NAME …]

With --push (`make images push=registry.example/team`) they are pushed as PREFIX/csm-…:TAG, and out/images is a kustomize
component whose `images` name them by digest, which an overlay lists under `components`: so the overlays' names follow.

This machine's pip configuration reaches the builds as a secret, so that packages come from where they
come from here and nothing of it stays in an image. Needs Python's standard library alone.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
VERSION, OUT = ROOT / "protos/csm/version.py", ROOT / "out/images"
IMAGES = ("gateway", "tokenizer", "backbone", "codec", "watermark", "weights")


def pip_configuration() -> dict[str, str]:
    """What pip uses here, files and environment together: option → value."""
    listing = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    rows = re.findall(r"^(?:global|install|:env:)\.([\w-]+)=(.+)$", listing, re.MULTILINE)
    return {option: str(ast.literal_eval(value)) for option, value in rows}


def local_folders(configuration: dict[str, str]) -> list[str]:
    """Folders and files of this machine that the configuration names: a build must see them too."""
    words = " ".join(configuration.values()).split()
    # A local index links to files in its own folder.
    words = [str(Path(word[7:]).parent) if word.startswith("file:///") else word for word in words]
    return sorted({word for word in words if word.startswith("/") and Path(word).exists()})


def labels(name: str, revision: str) -> dict[str, str]:
    """What the image says of itself: OCI's annotations. revision: of the source; empty where it is not known."""
    version = re.search(r'^__version__ = "(.+)"$', VERSION.read_text(), re.MULTILINE)
    own = {"title": f"csm-{name}", "version": version[1] if version else "", "licenses": "Apache-2.0", "vendor": "CSM"}
    return own | ({"revision": revision} if revision else {})


def revision() -> str:
    """The commit that is checked out, with a mark when there are changes on top; empty outside a checkout."""
    done = subprocess.run(
        ["git", "describe", "--always", "--abbrev=40", "--dirty"], cwd=ROOT, capture_output=True, text=True
    )
    return done.stdout.strip() if done.returncode == 0 else ""


def push(tool: str, name: str, tag: str, prefix: str) -> str:
    """Push the image as PREFIX/csm-NAME:TAG; its digest, as the registry has it."""
    target = f"{prefix.rstrip('/')}/csm-{name}:{tag}"
    with tempfile.TemporaryDirectory() as folder:
        if tool == "docker":
            subprocess.run([tool, "tag", f"csm-{name}:{tag}", target], check=True)
            said = subprocess.run([tool, "push", target], check=True, capture_output=True, text=True).stdout
            return re.findall(r"digest: (sha256:[0-9a-f]{64})", said)[-1]
        file = Path(folder) / "digest"
        subprocess.run([tool, "push", f"--digestfile={file}", f"csm-{name}:{tag}", target], check=True)
        return file.read_text().strip()


def lock(prefix: str, tag: str, digests: dict[str, str]) -> str:
    """The kustomize component that names what was pushed."""
    lines = [
        f"# Written by `make images`: what was pushed as {tag}.",
        "apiVersion: kustomize.config.k8s.io/v1alpha1",
        "kind: Component",
        "images:",
    ]
    for name, digest in digests.items():
        lines += [f"  - name: csm-{name}", f"    newName: {prefix.rstrip('/')}/csm-{name}", f"    digest: {digest}"]
    return "\n".join(lines) + "\n"


def command(
    tool: str,
    name: str,
    tag: str,
    base: str,
    args: Sequence[str],
    pip: str,
    mounts: Sequence[str],
    *,
    platform: str = "",
    revision: str = "",
) -> list[str]:
    """The command that builds image `csm-<name>:<tag>`. docker sees no mounts: it has no such option."""
    build = [tool, "bud", "--layers"] if tool == "buildah" else [tool, "build"]
    if tool != "docker":
        build += [f"--volume={path}:{path}:ro" for path in mounts]
    if platform:
        build += [f"--platform={platform}"]
    build += [f"--label=org.opencontainers.image.{key}={value}" for key, value in labels(name, revision).items()]
    if base:
        build += [f"--build-arg=BASE={base}"]
    takes = re.findall(r"^ARG (\w+)", (ROOT / f"deploy/images/{name}.Dockerfile").read_text(), re.MULTILINE)
    build += [f"--build-arg={arg}" for arg in args if arg.partition("=")[0] in takes]
    return [
        *build,
        f"--secret=id=pip,src={pip}",
        "--tag",
        f"csm-{name}:{tag}",
        "--file",
        f"deploy/images/{name}.Dockerfile",
        ".",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the images.")
    parser.add_argument("names", nargs="*", choices=[*IMAGES, []], metavar="NAME", help=f"of {', '.join(IMAGES)}")
    parser.add_argument("--tool", default=next(filter(shutil.which, ("buildah", "podman", "docker")), None))
    parser.add_argument("--base", default="", help="image to build on: Debian with Python, its venv module and pip")
    parser.add_argument("--tag", default="dev")
    parser.add_argument("--arg", action="append", default=[], metavar="NAME=VALUE", help="a build argument")
    parser.add_argument("--platform", default="", help="such as linux/arm64; the machine must be able to run it")
    parser.add_argument("--push", default="", metavar="PREFIX", help="registry and path to push to")
    options = parser.parse_args()
    if options.tool is None:
        sys.exit("images: none of buildah, podman, docker is installed")
    pip = pip_configuration()
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as file:
        file.write("[global]\n" + "".join(f"{key} = {value}\n" for key, value in pip.items()))
        file.flush()
        commit, digests = revision(), {}
        for name in options.names or IMAGES:
            begun = time.monotonic()
            argv = command(
                options.tool, name, options.tag, options.base, options.arg, file.name, local_folders(pip),
                platform=options.platform, revision=commit,
            )  # fmt: skip
            subprocess.run(argv, cwd=ROOT, check=True, env={**os.environ, "DOCKER_BUILDKIT": "1"})
            print(f"csm-{name}:{options.tag} built in {time.monotonic() - begun:.0f} s", flush=True)
            if options.push:
                digests[name] = push(options.tool, name, options.tag, options.push)
                print(f"    pushed: {digests[name]}", flush=True)
    if digests:
        OUT.mkdir(parents=True, exist_ok=True)
        (OUT / "kustomization.yaml").write_text(lock(options.push, options.tag, digests))


if __name__ == "__main__":
    main()
