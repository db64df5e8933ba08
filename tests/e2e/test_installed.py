"""The three wheels in empty environments: the client streams, the command talks, `csm up` serves the installed model.

Prints what the client costs: megabytes and seconds. Run with -m slow -s.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest
from csm.version import __version__

ROOT = Path(__file__).parents[2]
FOLDERS = {"csm-client": ROOT / "gateway/client", "csm-serve": ROOT, "csm-model-embedded": ROOT / "models/embedded"}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

STREAM = """
import json, sys, time
from array import array
begun = time.perf_counter()
import asyncio
from csm_client import SpeechClient, SyncSpeechClient
import_s = time.perf_counter() - begun

async def main():
    async with SpeechClient(sys.argv[1]) as client:
        stream = client.stream("Hello there.", seed=7)
        chunks = [chunk async for chunk in stream]
    return stream, chunks

stream, chunks = asyncio.run(main())
with SyncSpeechClient(sys.argv[1]) as client:
    same = b"".join(client.stream("Hello there.", seed=7))
print(json.dumps({
    "import_s": import_s, "chunks": len(chunks), "samples": stream.summary.samples, "bytes": sum(map(len, chunks)),
    "furthest": max(abs(a - b) for a, b in zip(array("h", same), array("h", b"".join(chunks)), strict=True)), "modules": sorted({name.partition(".")[0] for name in sys.modules}),
}))
"""


@pytest.fixture(scope="module")
def wheels(tmp_path_factory) -> dict[str, Path]:
    found = {}
    for name, folder in FOLDERS.items():
        out = tmp_path_factory.mktemp(name)
        command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        (found[name],) = out.iterdir()
    return found


class Environment:
    """An environment that holds what is installed in it, and nothing of the checkout."""

    def __init__(self, folder: Path):
        venv.create(folder, with_pip=True)
        self.folder = folder
        self.site = folder / f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("CSM_", "PYTHON", "OTEL_"))},
            "CSM_STATE_DIR": str(folder / "state"),
        }

    def run(self, *command: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.folder / "bin" / str(command[0]), *map(str, command[1:])],
            cwd=self.folder, env=self.env, check=check, capture_output=True, text=True,
        )  # fmt: skip

    def install(self, *what: object) -> float:
        """Seconds that pip took."""
        begun = time.perf_counter()
        self.run("pip", "install", "--quiet", "-c", ROOT / "constraints.txt", *what)
        return time.perf_counter() - begun

    def packages(self) -> set[str]:
        listed = json.loads(self.run("pip", "list", "--format", "json").stdout)
        return {package["name"].lower() for package in listed}


@pytest.fixture(scope="module")
def gateway(wheels, tmp_path_factory) -> Iterator[str]:
    """The address of `csm up`, run from the installed wheels; torch and the like are this environment's own."""
    served = Environment(tmp_path_factory.mktemp("up"))
    served.install("--no-deps", *wheels.values())
    (served.site / "packages.pth").write_text(f"{os.pathsep.join(_third_party())}\n".replace(os.pathsep, "\n"))
    command = [served.folder / "bin/csm", "up", "--ephemeral"]
    process = subprocess.Popen(command, cwd=served.folder, env=served.env, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        address = ""
        for line in process.stdout:
            if found := re.match(r"  gateway +(\S+) +ready", line):
                address = found[1]
            if line.startswith("ready:"):
                break
        assert address, "csm up ended"
        where = served.run(
            "python", "-c", "import models.bundle as m; print(m.__file__, m.known_bundles()['embedded'])"
        )
        assert all(Path(path).is_relative_to(served.site) for path in where.stdout.split()), where.stdout
        yield address
    finally:
        process.terminate()
        assert process.wait(60) == 0
        process.stdout.close()


def _third_party() -> list[str]:
    """Where this environment's packages lie, without the checkout."""
    checkout = {str(ROOT), str(ROOT / "protos"), str(ROOT / "gateway/client")}
    paths = [path for path in sys.path if path.endswith("site-packages") and path not in checkout]
    return paths or [sysconfig.get_path("purelib")]


def test_the_client_alone_streams_from_a_running_gateway(wheels, gateway, tmp_path):
    alone = Environment(tmp_path / "client")
    before_mb = _size_mb(alone.site)
    install_s = alone.install(wheels["csm-client"])
    done = alone.run("python", "-c", STREAM, gateway)
    seen = json.loads(done.stdout)
    assert seen["bytes"] == 2 * seen["samples"] > 0 and seen["chunks"] > 1
    assert seen["furthest"] <= 3, "samples of 16 bits, alike but for rounding"
    assert not {"services", "gateway", "models", "numpy", "rich"} & set(seen["modules"])
    dependencies = alone.packages() - {"pip", "setuptools", "csm-client"}
    print(
        f"\ncsm-client: wheel {wheels['csm-client'].stat().st_size / 1e6:.2f} MB, "
        f"installed with {', '.join(sorted(dependencies))} {_size_mb(alone.site) - before_mb:.1f} MB in {install_s:.1f} s, "
        f"imported in {seen['import_s']:.2f} s"
    )
    assert wheels["csm-client"].stat().st_size < 1e6
    assert {"grpcio", "protobuf", "googleapis-common-protos", "opentelemetry-api"} <= dependencies
    assert not {"numpy", "grpcio-status", "grpcio-health-checking", "opentelemetry-sdk"} & dependencies


def test_the_serving_wheel_alone_talks_and_says_what_serving_takes(wheels, gateway, tmp_path):
    base = Environment(tmp_path / "serve")
    install_s = base.install(wheels["csm-client"], wheels["csm-serve"])
    print(f"\ncsm-serve: {len(base.packages())} packages, {_size_mb(base.site):.0f} MB in {install_s:.1f} s")
    assert not {"torch", "numpy", "rich-click"} & base.packages()
    assert base.run("csm", "--version").stdout == f"csm {__version__}\n"
    assert "emma" in base.run("csm", "voices", "--address", gateway).stdout
    said = base.run("csm", "say", "Hello there.", "-o", "out.wav", "--voice", "Emma", "--address", gateway).stdout
    assert f"spoken by {gateway} (bundle embedded, version {__version__})" in said
    assert base.run("csm", "verify", "out.wav", "--address", gateway).stdout.startswith("Watermark found")
    servers = [("python", "-m", module) for module in ("services.codec", "gateway", "gateway.http")]
    for command in (("csm", "up"), ("csm", "demo"), *servers):
        failed = base.run(*command, check=False)
        assert failed.returncode == 1 and len(failed.stderr.splitlines()) == 1, failed.stderr
        assert "not installed: " in failed.stderr and "pip install 'csm-serve[" in failed.stderr
        print(failed.stderr.strip()[:160])


def _size_mb(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
