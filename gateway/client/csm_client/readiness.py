"""Wait until a server's standard health check says SERVING."""

from __future__ import annotations

import asyncio
import time

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from csm_client.exceptions import Unavailable

_POLL_S = 0.1
_STATUS = health_pb2.HealthCheckResponse
_OPTIONS = [
    # Of several servers behind one name each is asked in turn.
    ("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}'),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
]


async def wait_ready(
    address: str,
    timeout_s: float,
    *,
    name: str | None = None,
    service: str = "readiness",
    credentials: grpc.ChannelCredentials | None = None,
) -> None:
    """Return as soon as a server at `address` can serve. name: what to call it in the error.

    Raises: Unavailable after `timeout_s`, with the last thing heard.
    """
    ends, last = time.monotonic() + timeout_s, "nothing answers"
    async with (
        grpc.aio.secure_channel(address, credentials, options=_OPTIONS)
        if credentials is not None
        else grpc.aio.insecure_channel(address, options=_OPTIONS)
    ) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        while (remaining_s := ends - time.monotonic()) > 0:
            try:
                answer = await health.Check(
                    health_pb2.HealthCheckRequest(service=service), timeout=remaining_s, wait_for_ready=True
                )
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                    last = error.details() or error.code().name
            else:
                if answer.status == _STATUS.SERVING:
                    return
                last = f"its health check says {_STATUS.ServingStatus.Name(answer.status)}"
            await asyncio.sleep(min(_POLL_S, max(ends - time.monotonic(), 0)))
    raise Unavailable(f"{name or address} is not ready after {timeout_s:g} s: {last}", code=grpc.StatusCode.UNAVAILABLE)
