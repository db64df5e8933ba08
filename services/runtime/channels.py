"""Channels between services, traced, whose credentials follow their files."""

from __future__ import annotations

from typing import Any

import grpc

from services.runtime.grpc_options import channel_options
from services.runtime.reloadable_file import ReloadableFile
from services.runtime.reloading_channel import ReloadingChannel
from services.runtime.tracing import TracedChannel


def open_replica_channel(
    address: str,
    *,
    name: str = "",
    max_message_mib: int = 64,
    credentials: ReloadableFile[grpc.ChannelCredentials] | None = None,
) -> grpc.aio.Channel:
    """A channel to one replica, for a caller that balances and retries by itself.

    address: a gRPC target with one address. name: the host name that it was resolved from, which its certificate is
    for. Not blocking: calls on a target that is down end with UNAVAILABLE at once, and the
    channel keeps looking for it, at most two seconds apart.
    """
    options = [
        ("grpc.enable_retries", 0),
        *(option for option in channel_options(max_message_mib) if option[0] != "grpc.min_reconnect_backoff_ms"),
        # It is a connection's time limit too: a starved process takes longer than 100 ms to shake hands.
        ("grpc.min_reconnect_backoff_ms", 1000),
    ]
    if name:
        options += [("grpc.default_authority", name), ("grpc.ssl_target_name_override", name)]
    return open_with(address, options, credentials)


def open_with(
    target: str, options: list[tuple[str, Any]], credentials: ReloadableFile[grpc.ChannelCredentials] | None
) -> grpc.aio.Channel:
    """A traced channel with these options of gRPC. credentials: None is plaintext."""
    if credentials is None:
        return TracedChannel(grpc.aio.insecure_channel(target, options=options))
    return ReloadingChannel(
        target,
        credentials,
        lambda now: TracedChannel(grpc.aio.secure_channel(target, now, options=options)),
    )
