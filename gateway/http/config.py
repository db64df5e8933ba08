"""Settings of the HTTP process. It keeps nothing between requests, so any number of them may run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from services.runtime.settings import ServerSettings, setting

_COMMON = {field.name: field for field in ServerSettings.__dataclass_fields__.values()}


def _as_every_server(name: str) -> Any:
    field = _COMMON[name]
    meta = field.metadata
    return setting(meta["env"], field.default, meta["doc"], min=meta["min"], max=meta["max"], choices=meta["choices"])


@dataclass(frozen=True)
class HttpSettings:
    """Read from the environment at start."""

    listen: str = setting("CSM_HTTP_LISTEN", "127.0.0.1:50055", "address and port to listen on")
    gateway: str = setting("CSM_HTTP_GATEWAY_ADDRESS", "127.0.0.1:50050", "the gateway, host:port")
    gateway_ca_file: str | None = setting(
        "CSM_HTTP_GATEWAY_CA_FILE", None, "authorities of the gateway's certificate, PEM; without it, plaintext"
    )
    gateway_cert_file: str | None = setting(
        "CSM_HTTP_GATEWAY_CERT_FILE", None, "certificate to show to the gateway, PEM"
    )
    gateway_key_file: str | None = setting("CSM_HTTP_GATEWAY_KEY_FILE", None, "its key, PEM")
    tls_cert_file: str | None = setting(
        "CSM_HTTP_TLS_CERT_FILE", None, "certificate of this server with its chain, PEM; without it, plaintext"
    )
    tls_key_file: str | None = setting("CSM_HTTP_TLS_KEY_FILE", None, "its key, PEM")
    insecure: str | None = _as_every_server("insecure")
    page: bool = setting("CSM_HTTP_PAGE", True, "serve the page on `/`")
    cors_origins: str | None = setting(
        "CSM_HTTP_CORS_ORIGINS", None, "origins of other pages that may call, with commas between; `*` is all"
    )
    max_requests: int = setting("CSM_HTTP_MAX_REQUESTS", 1024, "requests served at once", min=1)
    max_connections: int = setting("CSM_HTTP_MAX_CONNECTIONS", 4096, "connections at once", min=1)
    max_body_kib: int = setting("CSM_HTTP_MAX_BODY_KIB", 1024, "largest request for speech, KiB", min=1, max=65_536)
    max_upload_mib: int = setting(
        "CSM_HTTP_MAX_UPLOAD_MIB", 1024, "largest file whose watermark is looked for, MiB", min=1
    )
    arrival_s: float = setting(
        "CSM_HTTP_ARRIVAL_S",
        10.0,
        "time for a request's headers, and for each piece of its body, to arrive, seconds",
        min=0.1,
        max=3600,
    )
    queue_s: float = setting(
        "CSM_HTTP_QUEUE_S",
        2.0,
        "a request that the generator has not begun after this is refused with 429, seconds",
        min=0.1,
        max=3600,
    )
    timeout_s: float | None = setting(
        "CSM_HTTP_TIMEOUT_S",
        None,
        "longest that one request may take, its upload aside, seconds; without it the gateway's own limits",
        min=1,
        max=86_400,
    )
    keep_alive_s: int = setting(
        "CSM_HTTP_KEEP_ALIVE_S", 75, "a connection without a request for longer is closed, seconds", min=1, max=3600
    )
    reader_stall_s: float = _as_every_server("reader_stall_s")
    drain_s: float = setting(
        "CSM_DRAIN_S",
        0.0,
        "after SIGTERM: seconds of `/health` saying 503 before connections are refused",
        min=0,
        max=600,
    )
    grace_s: float = _as_every_server("grace_s")
    metrics_listen: str | None = _as_every_server("metrics_listen")
    log_format: str = _as_every_server("log_format")
    log_level: str = _as_every_server("log_level")
