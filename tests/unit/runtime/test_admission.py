"""Streams that were opened and say nothing: how many, and for how long."""

import asyncio

import grpc
import pytest

from services.runtime.admission import Openings
from services.runtime.errors import CallError, Overloaded


async def silence():
    await asyncio.Event().wait()
    yield 1


async def words(*said):
    for word in said:
        yield word


async def test_the_first_message_is_handed_on_and_the_place_is_free_again():
    openings = Openings("streams", 1)
    for _ in range(3):
        requests = words("a", "b")
        assert await openings.first(requests) == "a"
        assert await anext(requests) == "b"
    assert await openings.first(words()) is None


async def test_silent_streams_are_bounded_and_a_cancelled_one_makes_room():
    openings = Openings("streams", 2)
    waiting = [asyncio.ensure_future(openings.first(silence())) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="streams without a first message: all 2 places"):
        await openings.first(words("a"))
    waiting[0].cancel()
    await asyncio.gather(waiting[0], return_exceptions=True)
    assert await openings.first(words("a")) == "a"
    waiting[1].cancel()
    await asyncio.gather(waiting[1], return_exceptions=True)


async def test_who_says_nothing_for_too_long_is_sent_away():
    openings = Openings("streams", 1, within_s=0.01)
    with pytest.raises(CallError, match="no first message came") as caught:
        await openings.first(silence())
    assert caught.value.code is grpc.StatusCode.ABORTED
    assert await openings.first(words("a")) == "a"
