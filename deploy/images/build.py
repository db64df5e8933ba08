"""`make images`: build the image of each service with buildah, podman or docker, whichever is here.

    python3 deploy/images/build.py [--base IMAGE] [--tag TAG] [--arg NAME=VALUE …] [NAME …]

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


def command(
    tool: str, name: str, tag: str, base: str, args: Sequence[str], pip: str, mounts: Sequence[str]
) -> list[str]:
    """The command that builds image `csm-<name>:<tag>`. docker sees no mounts: it has no such option."""
    build = [tool, "bud", "--layers"] if tool == "buildah" else [tool, "build"]
    if tool != "docker":
        build += [f"--volume={path}:{path}:ro" for path in mounts]
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
    options = parser.parse_args()
    if options.tool is None:
        sys.exit("images: none of buildah, podman, docker is installed")
    pip = pip_configuration()
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as file:
        file.write("[global]\n" + "".join(f"{key} = {value}\n" for key, value in pip.items()))
        file.flush()
        for name in options.names or IMAGES:
            begun = time.monotonic()
            argv = command(options.tool, name, options.tag, options.base, options.arg, file.name, local_folders(pip))
            subprocess.run(argv, cwd=ROOT, check=True, env={**os.environ, "DOCKER_BUILDKIT": "1"})
            print(f"csm-{name}:{options.tag} built in {time.monotonic() - begun:.0f} s", flush=True)


if __name__ == "__main__":
    main()
