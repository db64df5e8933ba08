"""Channels between services: balanced over every address behind a name, health-checked, retried, traced."""

from __future__ import annotations

import json
from typing import Any

import grpc

from services.runtime.grpc_options import MIB, channel_options
from services.runtime.reloadable_file import ReloadableFile
from services.runtime.reloading_channel import ReloadingChannel
from services.runtime.tracing import TracedChannel

# Retries never happen after a first message, so they cannot repeat audio. A full replica's refusal
# is tried on the next one, which is what round_robin picks.
_SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "healthCheckConfig": {"serviceName": "readiness"},
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 5,  # the most that gRPC takes
                "initialBackoff": "0.01s",
                "maxBackoff": "0.2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
            },
        }
    ],
}


def open_channel(
    target: str,
    *,
    max_message_mib: int = 64,
    credentials: ReloadableFile[grpc.ChannelCredentials] | None = None,
) -> grpc.aio.Channel:
    """A channel to `target` (`host:port`; a name with several addresses is balanced over all of them).

    credentials: from tls.reloadable_channel_credentials; None is plaintext. New connections follow the files.

    Not blocking: calls on a target that is down end with UNAVAILABLE at once, and the channel keeps
    looking for it, at most two seconds apart.
    """
    if "://" not in target and not target.startswith(("dns:", "ipv4:", "ipv6:", "unix:")):
        target = f"dns:///{target}"
    options = [
        ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
        ("grpc.enable_retries", 1),
        # A request with context audio is larger than the default 256 KiB, and would never be retried.
        ("grpc.per_rpc_retry_buffer_size", max_message_mib * MIB),
        *channel_options(max_message_mib),
    ]
    return _open(target, options, credentials)


def open_replica_channel(
    address: str,
    *,
    name: str = "",
    max_message_mib: int = 64,
    credentials: ReloadableFile[grpc.ChannelCredentials] | None = None,
) -> grpc.aio.Channel:
    """A channel to one replica, for a caller that balances and retries by itself.

    address: a gRPC target with one address. name: the host name that it was resolved from, which its certificate is
    for. Not blocking, as `open_channel`.
    """
    options = [
        ("grpc.enable_retries", 0),
        *(option for option in channel_options(max_message_mib) if option[0] != "grpc.min_reconnect_backoff_ms"),
        # It is a connection's time limit too: a starved process takes longer than 100 ms to shake hands.
        ("grpc.min_reconnect_backoff_ms", 1000),
    ]
    if name:
        options += [("grpc.default_authority", name), ("grpc.ssl_target_name_override", name)]
    return _open(address, options, credentials)


def _open(
    target: str, options: list[tuple[str, Any]], credentials: ReloadableFile[grpc.ChannelCredentials] | None
) -> grpc.aio.Channel:
    if credentials is None:
        return TracedChannel(grpc.aio.insecure_channel(target, options=options))
    return ReloadingChannel(
        target,
        credentials,
        lambda now: TracedChannel(grpc.aio.secure_channel(target, now, options=options)),
    )
