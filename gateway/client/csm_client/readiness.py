"""Wait until a server's standard health check (grpc.health.v1) says SERVING."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import grpc
from google.protobuf.wrappers_pb2 import Int32Value, StringValue

from csm_client.channel import Options, proxy_option
from csm_client.exceptions import Unavailable

# On the wire HealthCheckRequest{string service = 1} is a StringValue, and HealthCheckResponse{enum status = 1} an
# Int32Value: the health service needs no stubs and no package of its own.
_CHECK = "/grpc.health.v1.Health/Check"
_STATUS = ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")
_POLL_S = 0.1
_OPTIONS: Options = [
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
    request, wait = StringValue(value=service), _Wait(name or address, timeout_s)
    options = [*_OPTIONS, *proxy_option(address)]
    async with (
        grpc.aio.secure_channel(address, credentials, options=options)
        if credentials is not None
        else grpc.aio.insecure_channel(address, options=options)
    ) as channel:
        check = channel.unary_unary(
            _CHECK, request_serializer=StringValue.SerializeToString, response_deserializer=Int32Value.FromString
        )
        for remaining_s in wait:
            try:
                answer = await check(request, timeout=remaining_s, wait_for_ready=True)
            except grpc.aio.AioRpcError as error:
                wait.failed(error)
            else:
                if wait.is_over(answer.value):
                    return
            await asyncio.sleep(wait.pause_s())
    raise wait.unavailable()


def wait_ready_sync(
    address: str,
    timeout_s: float,
    *,
    service: str = "readiness",
    credentials: grpc.ChannelCredentials | None = None,
) -> None:
    """As `wait_ready`, for callers without an event loop."""
    request, wait = StringValue(value=service), _Wait(address, timeout_s)
    options = [*_OPTIONS, *proxy_option(address)]
    with (
        grpc.secure_channel(address, credentials, options=options)
        if credentials is not None
        else grpc.insecure_channel(address, options=options)
    ) as channel:
        check = channel.unary_unary(
            _CHECK, request_serializer=StringValue.SerializeToString, response_deserializer=Int32Value.FromString
        )
        for remaining_s in wait:
            try:
                answer = check(request, timeout=remaining_s, wait_for_ready=True)
            except grpc.RpcError as error:
                wait.failed(error)
            else:
                if wait.is_over(answer.value):
                    return
            time.sleep(wait.pause_s())
    raise wait.unavailable()


class _Wait:
    """Time left, and what was heard last."""

    def __init__(self, name: str, timeout_s: float):
        self._name, self._timeout_s = name, timeout_s
        self._ends_s, self._last = time.monotonic() + timeout_s, "nothing answers"

    def __iter__(self) -> Iterator[float]:
        while (remaining_s := self._ends_s - time.monotonic()) > 0:
            yield remaining_s

    def failed(self, error: grpc.RpcError) -> None:
        if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
            self._last = error.details() or error.code().name

    def is_over(self, status: int) -> bool:
        self._last = f"its health check says {_STATUS[status] if status < len(_STATUS) else status}"
        return status == _STATUS.index("SERVING")

    def pause_s(self) -> float:
        return min(_POLL_S, max(self._ends_s - time.monotonic(), 0))

    def unavailable(self) -> Unavailable:
        text = f"{self._name} is not ready after {self._timeout_s:g} s: {self._last}"
        return Unavailable(text, code=grpc.StatusCode.UNAVAILABLE)
