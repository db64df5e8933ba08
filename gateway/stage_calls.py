"""Calls on a stage: a place in it, and its streams' messages, whose failures are CallErrors that name the stage."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar

import grpc

from services.runtime.errors import InternalError, ResourceExhausted, from_upstream

PLACE_ROUNDS = 3  # of tries at a place in a stage, five tries each

T = TypeVar("T")


async def place(open_stage: Callable[[], Awaitable[T]]) -> T:
    """What `open_stage` gives. Raises: ResourceExhausted when no replica has room, and whatever else it raises.

    gRPC takes a refusal to the next replica five times; while many utterances ask at once these need not
    be five different ones, so a few full replicas could hide one that has room.
    """
    for _ in range(PLACE_ROUNDS - 1):
        with suppress(ResourceExhausted):
            return await open_stage()
    return await open_stage()


async def read(stage: str, call: Any, rename: Callable[[str], str] | None = None) -> Any:
    """The next message, or None at the end. Raises: CallError."""
    try:
        message = await call.read()
    except grpc.aio.AioRpcError as error:
        raise from_upstream(stage, error, rename) from None
    return None if message is grpc.aio.EOF else message


async def end(stage: str, call: Any) -> None:
    """Let a stream that said `finished` end by itself: a cancel now would be its outcome. Raises: CallError."""
    if await read(stage, call) is not None:
        raise InternalError(f"{stage}: the stream went on after finished")


async def send(stage: str, call: Any, sending: Awaitable[None]) -> None:
    """Write or half-close. Raises: CallError with the status that the stage ended the call with."""
    try:
        await sending
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
        # A write only says that the call is over; its status says why.
        code = await call.code()
        if code is grpc.StatusCode.OK:
            raise InternalError(f"{stage}: the stream ended before it was told to") from None
        metadata = await call.initial_metadata(), await call.trailing_metadata()
        raise from_upstream(stage, grpc.aio.AioRpcError(code, *metadata, await call.details())) from None
