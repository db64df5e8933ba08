"""The life of the HTTP process: serve, drain, stop.

SIGTERM → `/health` says 503 → CSM_DRAIN_S → no new connections, CSM_GRACE_S for running requests → spans flushed
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import signal
import socket
import ssl
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn

from gateway.http.app import build_app
from gateway.http.config import HttpSettings
from gateway.http.protocol import BoundedHttp
from gateway.http.upstream import Upstream
from services.runtime import logs, telemetry, tls
from services.runtime.reloadable_file import InvalidFile, ReloadableFile
from services.runtime.settings import SettingError, StartError, as_dict, help_text, read

log = logging.getLogger(__name__)
_HEADER_BYTES = 64 * 1024
_BACKLOG = 2048


class HttpServer:
    """Uvicorn without its handling of signals. Tests use it in-process; `main` runs it."""

    def __init__(self, settings: HttpSettings):
        self._settings = settings
        self._is_draining = False
        self._server: uvicorn.Server | None = None
        self._serving: asyncio.Task[None] | None = None
        self._stack = contextlib.AsyncExitStack()

    async def start(self) -> str:
        """Listen; returns the base URL. Raises: SettingError."""
        settings = self._settings
        secure = _tls(settings)
        upstream = await self._stack.enter_async_context(Upstream(settings))
        app = build_app(settings, upstream, lambda: self._is_draining)
        listener = _listener(settings.listen)
        config = uvicorn.Config(
            app,
            http=type("Http", (BoundedHttp,), {"arrival_s": settings.arrival_s}),
            loop="none",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=_BACKLOG,
            limit_concurrency=settings.max_connections,
            timeout_keep_alive=settings.keep_alive_s,
            timeout_graceful_shutdown=max(1, round(settings.grace_s)),
            h11_max_incomplete_event_size=_HEADER_BYTES,
            ssl_context_factory=(lambda _, __: secure) if secure is not None else None,
        )
        self._server = _Server(config)
        self._serving = asyncio.create_task(self._server.serve([listener]))
        while not self._server.started:
            if self._serving.done():
                self._serving.result()
            await asyncio.sleep(0.005)
        host, port = settings.listen.rpartition(":")[0], listener.getsockname()[1]
        return f"{'http' if secure is None else 'https'}://{host}:{port}"

    async def drain(self) -> None:
        """`/health` says 503, and balancers get CSM_DRAIN_S to notice. Requests still work."""
        self._is_draining = True
        await asyncio.sleep(self._settings.drain_s)

    async def stop(self) -> None:
        """Refuse new connections, give running requests CSM_GRACE_S, then break them off."""
        if self._server is not None and self._serving is not None:
            self._server.should_exit = True
            await self._serving
        await self._stack.aclose()

    def hurry(self) -> None:
        """Break off running requests now."""
        if self._server is not None:
            for task in self._server.server_state.tasks:
                task.cancel()
            self._server.force_exit = True


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # ours


def main() -> None:
    """Run until SIGTERM or SIGINT; a second signal ends running requests at once."""
    argparse.ArgumentParser(
        prog="http",
        description="The HTTP face of CSM: OpenAI's speech API, and a page. It reads its settings from the environment:",
        epilog=help_text(HttpSettings),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args()
    try:
        settings = read(HttpSettings)
        logs.configure("http", level=settings.log_level, form=settings.log_format)
        logging.getLogger("uvicorn").addFilter(_without_incomplete)
        logging.getLogger("uvicorn.error").addFilter(_without_incomplete)
        logging.getLogger("uvicorn.error").setLevel("WARNING")
        telemetry.configure("http", metrics_listen=settings.metrics_listen)
    except SettingError as error:
        sys.exit(f"http: cannot start: {error}")
    try:
        code = asyncio.run(_serve(settings))
    finally:
        telemetry.shutdown()
    sys.exit(code)


async def _serve(settings: HttpSettings) -> int:
    log.info("settings %s", json.dumps(as_dict(settings), default=str))
    server, stopping = HttpServer(settings), asyncio.Event()

    def on_signal() -> None:
        if stopping.is_set():
            server.hurry()
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    try:
        address = await server.start()
    except StartError as error:
        log.critical("cannot start: %s", error)
        return 1
    log.info("http serves on %s, the gateway is %s", address, settings.gateway)
    await stopping.wait()
    log.info("draining")
    await server.drain()
    await server.stop()
    return 0


def _without_incomplete(record: logging.LogRecord) -> bool:
    """An answer that was broken off is this program's own doing, and is counted."""
    return "without completing response" not in str(record.msg)


def _listener(address: str) -> socket.socket:
    """Raises: SettingError."""
    host, _, port = address.rpartition(":")
    try:
        if not 0 <= int(port) <= 65_535:
            raise ValueError("a port is at most 65535")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host.strip("[]"), int(port)), family=family, backlog=_BACKLOG)
    except (OSError, ValueError) as error:
        raise SettingError(f"CSM_HTTP_LISTEN={address!r}: cannot listen there ({error})") from error


def _tls(settings: HttpSettings) -> ssl.SSLContext | None:
    """None is plaintext, where that may be. A new connection gets what the files hold then. Raises: SettingError."""
    cert, key = settings.tls_cert_file, settings.tls_key_file
    if not (cert or key):
        names = "CSM_HTTP_TLS_CERT_FILE and CSM_HTTP_TLS_KEY_FILE"
        tls.require_private("CSM_HTTP_LISTEN", settings.listen, names, settings.insecure)
        return None
    if not (cert and key):
        missing = "CSM_HTTP_TLS_KEY_FILE" if cert else "CSM_HTTP_TLS_CERT_FILE"
        raise SettingError(f"{missing} is not set: TLS needs both a certificate and its key")

    def load() -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(cert, key)
        except (OSError, ValueError) as error:
            raise InvalidFile(f"{cert}, {key}: {error}") from None
        context.set_alpn_protocols(["http/1.1"])
        return context

    try:
        files = ReloadableFile("certificates of this server", [Path(cert), Path(key)], load)
    except InvalidFile as error:
        raise SettingError(f"CSM_HTTP_TLS_CERT_FILE, CSM_HTTP_TLS_KEY_FILE: {error}") from error

    def choose(connection: Any, name: str | None, context: ssl.SSLContext) -> None:
        connection.context = files.current()

    context = load()
    context.sni_callback = choose
    return context
