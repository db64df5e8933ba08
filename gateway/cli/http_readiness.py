"""Wait until the HTTP process says that it can serve."""

from __future__ import annotations

import asyncio
import time

import grpc
from csm_client.exceptions import Unavailable

_POLL_S = 0.1
_ANSWER_S = 5.0


async def wait_ready_http(address: str, timeout_s: float, *, name: str) -> None:
    """Return as soon as GET /health at `address` says 200. Raises: Unavailable after `timeout_s`, with the last answer."""
    ends_s, last = time.monotonic() + timeout_s, "nothing answers"
    while time.monotonic() < ends_s:
        try:
            async with asyncio.timeout(_ANSWER_S):
                last = await _status(address)
            if last == "200":
                return
        except (OSError, TimeoutError):
            pass
        await asyncio.sleep(_POLL_S)
    text = f"{name} is not ready after {timeout_s:g} s: its health check says {last}"
    raise Unavailable(text, code=grpc.StatusCode.UNAVAILABLE)


async def _status(address: str) -> str:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(f"GET /health HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n".encode())
        line = await reader.readline()
        return line.split()[1].decode() if len(line.split()) > 1 else "nothing"
    finally:
        writer.close()
