"""The standard health service, whose watchers do not keep a server from stopping."""

from __future__ import annotations

import asyncio

import grpc
from grpc_health.v1 import health, health_pb2


class Health(health.aio.HealthServicer):
    """A Watch has no end of its own, and a server waits for its calls: `end` ends them."""

    def __init__(self) -> None:
        super().__init__()
        self._ended = asyncio.Event()

    def end(self) -> None:
        """End the watches that run, and those to come once they have answered."""
        self._ended.set()

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext) -> None:
        ended = asyncio.ensure_future(self._ended.wait())
        watching = asyncio.ensure_future(super().Watch(request, context))
        try:
            await asyncio.wait({watching, ended}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.cancel()
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
