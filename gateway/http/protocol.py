"""Uvicorn's HTTP/1.1, with a time limit for headers and a way to reset a connection.

An answer that breaks off must not look whole. Uvicorn closes such a connection, and after the bytes that are still
queued the caller sees a chunked body without its end. A caller of HTTP/1.0 would see nothing, and one that does not
read would hold the connection for ever; a reset is plain to both.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

RESET = "csm.reset"  # key of the scope's state: call it to reset the connection
_LINGER_0 = struct.pack("ii", 1, 0)  # close with RST


class BoundedHttp(H11Protocol):
    """One connection. A subclass sets `arrival_s`: time for a request's headers to arrive."""

    arrival_s = 10.0
    _arrival: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state = {**self.app_state, RESET: self.reset}
        self._arrival = self.loop.call_later(self.arrival_s, self._headers_are_late)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        is_waiting = self.conn.their_state is h11.IDLE
        if is_waiting and self._arrival is None:
            self._arrival = self.loop.call_later(self.arrival_s, self._headers_are_late)
        elif not is_waiting:
            self._stop_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def reset(self) -> None:
        """Drop the connection and what is queued for it. Without effect on one that has gone."""
        if self.transport.is_closing():
            return
        connection: Any = self.transport.get_extra_info("socket")
        if connection is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_0)
        self.transport.abort()

    def _headers_are_late(self) -> None:
        self._arrival = None
        if not self.transport.is_closing():
            self.transport.abort()

    def _stop_timer(self) -> None:
        if self._arrival is not None:
            self._arrival.cancel()
            self._arrival = None
