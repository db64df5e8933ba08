"""A network path that can be cut without either end learning it."""

from __future__ import annotations

import asyncio


class TcpPath:
    """A TCP relay to a server. While it is cut, bytes go nowhere and connections stay open.

    address: where to connect to, `host:port`.
    """

    def __init__(self) -> None:
        self.address = ""
        self._open = asyncio.Event()
        self._open.set()
        self._relays: set[asyncio.Task[None]] = set()

    async def start(self, target: str) -> None:
        """Relay to `target`, `host:port`, which need not listen yet."""
        self._host, _, self._port = target.rpartition(":")
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        """Close every connection."""
        self._server.close()
        for relay in self._relays:
            relay.cancel()
        await asyncio.gather(*self._relays, return_exceptions=True)

    def cut(self) -> None:
        """Swallow all bytes from now on."""
        self._open.clear()

    def mend(self) -> None:
        """Let bytes through again, those that were held back first."""
        self._open.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            back_reader, back_writer = await asyncio.open_connection(self._host, self._port)
        except OSError:
            writer.close()
            return
        for one in (self._relay(reader, back_writer), self._relay(back_reader, writer)):
            task = asyncio.ensure_future(one)
            self._relays.add(task)
            task.add_done_callback(self._relays.discard)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                await self._open.wait()
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()
