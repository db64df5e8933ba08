"""Streams that were opened and say nothing: how many, and for how long."""

import asyncio

import grpc
import pytest

from services.runtime.admission import PendingStreams
from services.runtime.errors import CallError, ResourceExhausted


async def silence():
    await asyncio.Event().wait()
    yield 1


async def words(*said):
    for word in said:
        yield word


async def test_the_first_message_is_handed_on_and_the_place_is_free_again():
    pending = PendingStreams("streams", 1)
    for _ in range(3):
        requests = words("a", "b")
        assert await pending.first_message(requests) == "a"
        assert await anext(requests) == "b"
    assert await pending.first_message(words()) is None


async def test_silent_streams_are_bounded_and_a_cancelled_one_makes_room():
    pending = PendingStreams("streams", 2)
    waiting = [asyncio.ensure_future(pending.first_message(silence())) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(ResourceExhausted, match="streams without a first message: all 2 permits"):
        await pending.first_message(words("a"))
    waiting[0].cancel()
    await asyncio.gather(waiting[0], return_exceptions=True)
    assert await pending.first_message(words("a")) == "a"
    waiting[1].cancel()
    await asyncio.gather(waiting[1], return_exceptions=True)


async def test_who_says_nothing_for_too_long_is_sent_away():
    pending = PendingStreams("streams", 1, timeout_s=0.01)
    with pytest.raises(CallError, match="no first message came") as caught:
        await pending.first_message(silence())
    assert caught.value.code is grpc.StatusCode.ABORTED
    assert await pending.first_message(words("a")) == "a"
