"""gRPC's options for our servers and channels: what bounds a connection before any handler runs."""

from __future__ import annotations

import resource

from services.runtime.settings import ServerSettings

MIB = 1024 * 1024
Options = list[tuple[str, str | int]]

# Bounds what gRPC reads ahead of a slow consumer to a few frames of audio instead of megabytes.
FLOW_CONTROL: Options = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 16384)]
# gRPC would take http_proxy for calls between our own services.
NO_PROXY: Options = [("grpc.enable_http_proxy", 0)]

_PENDING_CALLS = 65_536
_HANDSHAKE_MS = 10_000
_OWN_DESCRIPTORS = 128  # files, the event loop, channels to other services
_IDENTITY_ONLY = 1  # bit set of grpc_compression_algorithm


def server_options(settings: ServerSettings, *, max_receive_bytes: int, share_port: bool = False) -> Options:
    """Options of a server that strangers may reach."""
    return [
        # gRPC's own default is 1, and two servers would share a port silently.
        ("grpc.so_reuseport", int(share_port)),
        ("grpc.max_receive_message_length", max_receive_bytes),
        ("grpc.max_send_message_length", settings.max_message_mib * MIB),
        # A compressed request is unpacked before any handler runs: 61 KB become 60 MiB.
        ("grpc.compression_enabled_algorithms_bitset", _IDENTITY_ONLY),
        ("grpc.max_concurrent_streams", settings.max_concurrent_streams),
        ("grpc.max_allowed_incoming_connections", max_connections(settings.max_connections)),
        ("grpc.server_handshake_timeout_ms", _HANDSHAKE_MS),
        ("grpc.max_connection_age_ms", settings.max_connection_age_s * 1000),
        ("grpc.max_connection_age_grace_ms", settings.connection_grace_s * 1000),
        # Calls that no handler has taken up yet: gRPC cancels some above 1,000, and all above 3,000. The service
        # itself refuses, with a status and a time to retry after.
        ("grpc.server.max_pending_requests", _PENDING_CALLS),
        ("grpc.server.max_pending_requests_hard_limit", _PENDING_CALLS),
        # Clients may ping while they have no call, as phones and proxies do to keep a connection.
        ("grpc.keepalive_permit_without_calls", 1),
        # Our own channels ping every 5 s; on a busy machine two of their pings may arrive close together.
        ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 5_000),
        ("grpc.http2.ping_timeout_ms", 5_000),
        *FLOW_CONTROL,
    ]


def channel_options(max_message_mib: int) -> Options:
    """Options of a channel between our own services."""
    return [
        *NO_PROXY,
        ("grpc.max_receive_message_length", max_message_mib * MIB),
        ("grpc.max_send_message_length", max_message_mib * MIB),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2000),
        # A peer that froze is noticed after 8 s.
        ("grpc.keepalive_time_ms", 5_000),
        ("grpc.keepalive_timeout_ms", 3_000),
        ("grpc.http2.ping_timeout_ms", 3_000),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.dns_min_time_between_resolutions_ms", 5_000),
        # Channels to the same target in one process must not share their connection's fate.
        ("grpc.use_local_subchannel_pool", 1),
        *FLOW_CONTROL,
    ]


def max_connections(wanted: int) -> int:
    """`wanted`, or fewer where the process may not open that many files."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return wanted
    return max(1, min(wanted, files - _OWN_DESCRIPTORS if files > 2 * _OWN_DESCRIPTORS else files // 2))
