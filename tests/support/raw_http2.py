"""A gRPC caller that does what no gRPC library lets it: announce more than it sends, take nothing, say nothing."""

from __future__ import annotations

import asyncio
import struct
from collections import defaultdict
from contextlib import asynccontextmanager

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    PingAckReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes


def frame(payload: bytes, *, announced: int | None = None) -> bytes:
    """A gRPC message. announced: the length in its header, where that is not the true one."""
    return struct.pack(">BI", 0, len(payload) if announced is None else announced) + payload


class RawCaller:
    """One connection. window: octets of each call's answer that it takes (SETTINGS_INITIAL_WINDOW_SIZE)."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, window: int):
        self._reader, self._writer = reader, writer
        self._http2 = H2Connection(H2Configuration(client_side=True, header_encoding=None))
        self._http2.initiate_connection()
        self._http2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: window})
        self._flush()
        self.headers: defaultdict[int, dict[bytes, bytes]] = defaultdict(dict)  # trailers included
        self.data: defaultdict[int, bytes] = defaultdict(bytes)
        self.ended: defaultdict[int, asyncio.Event] = defaultdict(asyncio.Event)
        self.closed = asyncio.Event()
        self.is_going = False  # the server takes no more calls on this connection
        self.pings = 0  # answered
        self._changed = asyncio.Event()
        self._task = asyncio.ensure_future(self._run())

    async def open(self, method: str, *metadata: tuple[bytes, bytes]) -> int:
        """Begin a call of `/package.Service/Method`; its number."""
        stream = self._http2.get_next_available_stream_id()
        headers = [
            (b":method", b"POST"), (b":scheme", b"http"), (b":path", method.encode()), (b":authority", b"test"),
            (b"te", b"trailers"), (b"content-type", b"application/grpc"), *metadata,
        ]  # fmt: skip
        self._http2.send_headers(stream, headers)
        self._flush()
        return stream

    async def send(self, stream: int, data: bytes, *, end: bool = False) -> None:
        """Send octets as the peer's flow control lets them go, until the peer ends the call.

        Raises: ConnectionError where the peer has ended the connection.
        """
        sent = 0
        while sent < len(data) and not self.ended[stream].is_set():
            if self.closed.is_set():
                raise ConnectionResetError("the peer ended the connection")
            size = min(self._http2.local_flow_control_window(stream), self._http2.max_outbound_frame_size)
            if size <= 0:  # the peer has lowered its window
                self._changed.clear()
                await asyncio.wait_for(self._changed.wait(), 30)
                continue
            self._http2.send_data(stream, data[sent : sent + size])
            sent += size
            self._flush()
            await self._writer.drain()
        if end and not self.ended[stream].is_set():
            self._http2.end_stream(stream)
            self._flush()

    async def status(self, stream: int, timeout_s: float = 30) -> int:
        """grpc-status of a call, once it has ended."""
        await asyncio.wait_for(self.ended[stream].wait(), timeout_s)
        return int(self.headers[stream].get(b"grpc-status", b"-1"))

    def ping(self) -> None:
        self._http2.ping(b"01234567")
        self._flush()

    def reset(self, stream: int) -> None:
        self._http2.reset_stream(stream, 8)
        self._flush()

    async def close(self) -> None:
        self._task.cancel()
        self._writer.close()
        await asyncio.gather(self._task, return_exceptions=True)

    def _flush(self) -> None:
        self._writer.write(self._http2.data_to_send())

    async def _run(self) -> None:
        try:
            while data := await self._reader.read(65536):
                self._receive(data)
                self._changed.set()
                self._flush()
        except (ConnectionError, ProtocolError):
            pass  # as when frames follow the server's GOAWAY
        finally:
            self.is_going = True
            self.closed.set()
            self._changed.set()  # who waits for the peer's window waits no more

    def _receive(self, data: bytes) -> None:
        for event in self._http2.receive_data(data):
            if isinstance(event, ResponseReceived | TrailersReceived):
                self.headers[event.stream_id].update(event.headers)
            elif isinstance(event, DataReceived):
                self.data[event.stream_id] += event.data
                if event.flow_controlled_length:
                    self._http2.increment_flow_control_window(event.flow_controlled_length)
            elif isinstance(event, ConnectionTerminated):
                self.is_going = True
            elif isinstance(event, PingAckReceived):
                self.pings += 1
            elif isinstance(event, StreamReset | StreamEnded):
                self.ended[event.stream_id].set()


@asynccontextmanager
async def raw_caller(address: str, *, window: int = 65535):
    host, _, port = address.rpartition(":")
    caller = RawCaller(*await asyncio.open_connection(host, int(port)), window)
    try:
        yield caller
    finally:
        await caller.close()
