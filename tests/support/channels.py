"""A channel as any gRPC client of ours may open it: balanced over a name's addresses, health-checked, retried."""

from __future__ import annotations

import json

import grpc

from services.runtime.channels import open_with
from services.runtime.grpc_options import MIB, channel_options
from services.runtime.reloadable_file import ReloadableFile

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
    return open_with(target, options, credentials)
