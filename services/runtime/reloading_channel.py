"""A channel that follows changes of its certificate files: a channel of gRPC keeps its first ones.

A change opens a second channel, which takes over once it has connected. Until then calls use the first, so a
certificate that servers do not trust yet interrupts nothing. Where a name has several replicas, one that trusts it
is enough; the others get calls once they trust it too. The first channel is closed after its last call.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import grpc

from services.runtime.reloadable_file import ReloadableFile

log = logging.getLogger(__name__)
_READY = grpc.ChannelConnectivity.READY
_FAILED = grpc.ChannelConnectivity.TRANSIENT_FAILURE


class ReloadingChannel(grpc.aio.Channel):
    """One channel for its users: stubs stay valid across reloads."""

    def __init__(
        self,
        target: str,
        credentials: ReloadableFile[grpc.ChannelCredentials],
        connect: Callable[[grpc.ChannelCredentials], grpc.aio.Channel],
    ):
        self._target, self._credentials, self._connect = target, credentials, connect
        self._credentials_tried: grpc.ChannelCredentials | None = (
            credentials.current()
        )  # tried last; None: they could not be used
        self._channel = connect(self._credentials_tried)
        self._calls: defaultdict[grpc.aio.Channel, set[grpc.aio.Call]] = defaultdict(set)  # that run
        self._reload: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()

    def _current_channel(self) -> grpc.aio.Channel:
        credentials = self._credentials.current()
        if credentials is not self._credentials_tried:
            self._credentials_tried = credentials
            if self._reload is not None:
                self._reload.cancel()
            self._reload = asyncio.get_running_loop().create_task(self._reload_with(credentials))
        return self._channel

    async def _reload_with(self, credentials: grpc.ChannelCredentials) -> None:
        try:
            fresh, warned = self._connect(credentials), False
        except Exception as error:
            log.warning("%s: no channel with the new certificates; the next call tries again: %s", self._target, error)
            self._credentials_tried = None
            return
        try:
            while (state := fresh.get_state(try_to_connect=True)) is not _READY:
                if state is _FAILED and not warned:
                    warned = True
                    log.warning(
                        "%s cannot be reached with the new certificates; the old ones stay in use", self._target
                    )
                await fresh.wait_for_state_change(state)
        except BaseException:
            await fresh.close()
            raise
        retired, self._channel = self._channel, fresh
        log.info("calls to %s use the new certificates", self._target)
        self._close_if_idle(retired)

    def _close_if_idle(self, channel: grpc.aio.Channel) -> None:
        if channel is not self._channel and not self._calls[channel]:
            del self._calls[channel]
            task = asyncio.get_running_loop().create_task(channel.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def _multicallable(self, kind: str, *args: Any, **kwargs: Any) -> Callable[..., grpc.aio.Call]:
        made: dict[grpc.aio.Channel, Callable[..., grpc.aio.Call]] = {}

        def call(*call_args: Any, **call_kwargs: Any) -> grpc.aio.Call:
            channel = self._current_channel()
            if channel not in made:
                made.clear()
                made[channel] = getattr(channel, kind)(*args, **kwargs)
            running = made[channel](*call_args, **call_kwargs)
            self._calls[channel].add(running)
            running.add_done_callback(lambda _: self._ended(channel, running))
            return running

        return call

    def _ended(self, channel: grpc.aio.Channel, call: grpc.aio.Call) -> None:
        # May be called again: gRPC does when the status comes after a write has failed.
        self._calls[channel].discard(call)
        self._close_if_idle(channel)

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        return self._multicallable("unary_unary", *args, **kwargs)

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        return self._multicallable("unary_stream", *args, **kwargs)

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        return self._multicallable("stream_unary", *args, **kwargs)

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        return self._multicallable("stream_stream", *args, **kwargs)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._channel.channel_ready()

    async def close(self, grace: float | None = None) -> None:
        if self._reload is not None:
            self._reload.cancel()
            await asyncio.gather(self._reload, return_exceptions=True)
        await asyncio.gather(*self._closing, *(channel.close(grace) for channel in {self._channel, *self._calls}))

    async def __aenter__(self) -> ReloadingChannel:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()
