"""The HTTP face before a gateway: in this process, or as the process that is deployed."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx

from gateway.http.config import HttpSettings
from gateway.http.server import HttpServer
from services.runtime.settings import read

ROOT = Path(__file__).parents[2]
# The machine of a test may be slow: a time limit is tested where it is set.
_PATIENT = {"queue_s": 60.0}


@asynccontextmanager
async def open_http(gateway: str, **settings: Any) -> AsyncIterator[SimpleNamespace]:
    """`url`, a `client` of httpx for it, and the `server`. settings: beside the address of the gateway."""
    server = HttpServer(
        read(HttpSettings, environ={}, **{"listen": "127.0.0.1:0", "gateway": gateway, **_PATIENT, **settings})
    )
    url = await server.start()
    try:
        async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as client:
            yield SimpleNamespace(url=url, client=client, server=server)
    finally:
        await server.stop()


class HttpProcess:
    """`python -m gateway.http`; `env` has its settings, CSM_HTTP_LISTEN among them."""

    def __init__(self, log: Path, env: dict[str, str]):
        self.log, self.env = log, env
        self.url = f"http://{env['CSM_HTTP_LISTEN']}"
        self.process: asyncio.subprocess.Process

    async def __aenter__(self) -> HttpProcess:
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("CSM_", "OTEL_"))}
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "gateway.http", cwd=ROOT, env={**clean, **self.env}, stdout=log, stderr=log
            )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.process.returncode is None:
            self.process.terminate()
        try:
            await asyncio.wait_for(self.process.wait(), 20)
        except TimeoutError:
            self.process.kill()
            await self.process.wait()

    async def until(self, status: int, path: str = "/health", within_s: float = 60) -> None:
        """Wait until GET `path` answers with `status`."""
        async with asyncio.timeout(within_s), httpx.AsyncClient(trust_env=False) as client:
            while True:
                assert self.process.returncode is None, self.log.read_text()[-3000:]
                try:
                    if (await client.get(self.url + path)).status_code == status:
                        return
                except httpx.TransportError:
                    pass
                await asyncio.sleep(0.05)
