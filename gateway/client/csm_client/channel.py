"""gRPC channel options: load balancing, health checks, retries, flow control."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Any

import grpc

from csm_client.address import is_loopback

log = logging.getLogger(__name__)
Options = Sequence[tuple[str, Any]]

_MIB = 1024 * 1024
_RETRY = {
    "maxAttempts": 3,
    "initialBackoff": "0.1s",
    "maxBackoff": "1s",
    "backoffMultiplier": 3,
    "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
}


def channel_options(health_service: str | None, max_message_mib: int) -> Options:
    """health_service: only servers whose health check of this name says SERVING get calls; None checks none."""
    service_config: dict[str, Any] = {
        "loadBalancingConfig": [{"round_robin": {}}],
        "methodConfig": [{"name": [{"service": "csm.speech.v1.SpeechService"}], "retryPolicy": _RETRY}],
    }
    if health_service is not None:
        service_config["healthCheckConfig"] = {"serviceName": health_service}
    return [
        ("grpc.service_config", json.dumps(service_config)),
        # A request is tried again only while it fits in this buffer, and context audio is long: default 256 KiB.
        ("grpc.per_rpc_retry_buffer_size", 16 * _MIB),
        ("grpc.max_receive_message_length", max_message_mib * _MIB),
        # Two clients never share a connection: behind one port may be several processes.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2000),
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 5_000),
        # Bounds what gRPC reads ahead of a slow consumer to a few frames of audio instead of megabytes.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", 16384),
    ]


def channel_credentials(
    address: str, credentials: grpc.ChannelCredentials | None, insecure: bool
) -> grpc.ChannelCredentials | None:
    """What to speak at `address`: TLS by default, plaintext (None) on this machine or when `insecure` asks for it."""
    if credentials is not None or is_loopback(address):
        return credentials
    if insecure:
        log.warning("calls to %s are in plaintext, as was asked for", address)
        return None
    return grpc.ssl_channel_credentials()


def proxy_option(address: str) -> Options:
    """A proxy (http_proxy, https_proxy) is for other machines: calls on this one never go through it."""
    return [("grpc.enable_http_proxy", 0)] if is_loopback(address) else []
