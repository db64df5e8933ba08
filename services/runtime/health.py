"""The standard health service (grpc.health.v1).

A watcher that reads nothing can delay nothing: each waits for an event of its own, no lock is held over a
write, a write has a time limit, and nothing runs while no status changes.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.runtime.detached import Detached
from services.runtime.grpc_types import Context

SERVICE_NAME = "grpc.health.v1.Health"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN

Status: TypeAlias = int  # a health_pb2.HealthCheckResponse.ServingStatus
# A connection needs one Watch, or one for each name. It takes several connections to use all permits.
_MAX_WATCHERS_PER_CONNECTION = 100


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # has no types
    """Statuses by service name, for Check, List and Watch."""

    def __init__(self, *, max_watchers: int, write_timeout_s: float):
        """max_watchers: a Watch beyond it is refused. write_timeout_s: a watcher that reads nothing for longer ends."""
        self._max_watchers, self._write_timeout_s = max_watchers, write_timeout_s
        self._status: dict[str, Status] = {}
        self._watchers: dict[str, set[asyncio.Event]] = {}
        self._per_connection: Counter[str] = Counter()
        self._closed = False

    @property
    def watchers(self) -> int:
        """Watch calls in flight."""
        return self._per_connection.total()

    def set(self, name: str, status: Status) -> None:
        """Publish a status; its watchers wake only when it differs from the last one."""
        if self._status.get(name) != status:
            self._status[name] = status
            for changed in self._watchers.get(name, ()):
                changed.set()

    def close(self) -> None:
        """End all watches, and later ones after their first answer. Returns at once."""
        self._closed = True
        for watchers in self._watchers.values():
            for changed in watchers:
                changed.set()

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Context) -> health_pb2.HealthCheckResponse:
        status = self._status.get(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return health_pb2.HealthCheckResponse(status=status)

    async def List(self, request: health_pb2.HealthListRequest, context: Context) -> health_pb2.HealthListResponse:
        statuses = {name: health_pb2.HealthCheckResponse(status=status) for name, status in self._status.items()}
        return health_pb2.HealthListResponse(statuses=statuses)

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Context) -> None:
        connection = context.peer()
        if self.watchers >= self._max_watchers or self._per_connection[connection] >= _MAX_WATCHERS_PER_CONNECTION:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many Watch calls")
        with self._registered(request.service, connection) as changed:
            sent: Status | None = None
            while True:
                changed.clear()
                status = self._status.get(request.service, SERVICE_UNKNOWN)
                if status != sent:
                    sent = status
                    try:
                        async with asyncio.timeout(self._write_timeout_s):
                            await Detached(context.write(health_pb2.HealthCheckResponse(status=status)))
                    except TimeoutError:
                        text = f"the watcher read nothing for {self._write_timeout_s:g} s"
                        await context.abort(grpc.StatusCode.ABORTED, text)
                if self._closed:
                    return
                await changed.wait()

    @contextmanager
    def _registered(self, name: str, connection: str) -> Iterator[asyncio.Event]:
        changed = asyncio.Event()
        self._watchers.setdefault(name, set()).add(changed)
        self._per_connection[connection] += 1
        try:
            yield changed
        finally:
            self._watchers[name].discard(changed)
            if not self._watchers[name]:
                del self._watchers[name]
            self._per_connection[connection] -= 1
            if not self._per_connection[connection]:
                del self._per_connection[connection]
