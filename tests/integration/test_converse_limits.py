"""Conversations over fake stages that meet a limit or a fault: the turn pays for it, and the conversation goes on."""

from __future__ import annotations

import asyncio

import grpc
import numpy as np
import pytest
from csm.common.v1 import common_pb2
from csm.speech.v1 import speech_pb2

from services.runtime.errors import CallError, ResourceExhausted
from support.fake_stages import MARK, SAMPLES_PER_FRAME
from support.talk import WAV, all_free, prompt_of, speak_some, talking

TWO_UNITS = (
    "This is the first unit, which is long enough to be one by itself, for it has over a hundred letters. And a second."
)


async def test_a_turn_waits_for_room(open_chain, probe):
    chain = await open_chain(max_streams=1)
    async with talking(chain) as (first, one), talking(chain) as (second, other):
        await speak_some(chain, probe, first, one)
        await second.say("Hello.")
        await other.until(lambda: other.conversation.started is not None)
        probe.gate, probe.frames = None, 10
        probe.touch()
        await other.until(lambda: other.finished)
        assert other.finished[0].finish_reason == common_pb2.FINISH_REASON_END_OF_SPEECH
    await all_free(probe)


async def test_a_turn_without_room_is_refused_and_the_conversation_goes_on(open_chain, probe, monkeypatch):
    monkeypatch.setattr("gateway.speech.spoken_turn._PLACE_PATIENCE_S", 0.05)
    chain = await open_chain(max_streams=1)
    async with talking(chain) as (first, one), talking(chain) as (second, other):
        await speak_some(chain, probe, first, one)
        await second.say("Hello.")
        await other.until(lambda: other.finished)
        assert other.finished[0].finish_reason == common_pb2.FINISH_REASON_REFUSED
        assert other.finished[0].summary.finish_reason == common_pb2.FINISH_REASON_REFUSED
        assert other.warnings == ["REFUSED"]
        probe.gate, probe.frames = None, 10
        probe.touch()
        await one.until(lambda: one.finished)
        await second.say("Hello again.")
        await other.until(lambda: len(other.finished) == 2)
        assert other.finished[1].finish_reason == common_pb2.FINISH_REASON_END_OF_SPEECH
    assert prompt_of(probe.requests[-1]) == [("Hello again.", None)]
    await all_free(probe)


async def test_a_turn_that_waits_for_room_can_be_interrupted(open_chain, probe):
    chain = await open_chain(max_streams=1)
    async with talking(chain) as (first, one), talking(chain) as (second, other):
        await speak_some(chain, probe, first, one)
        await second.say("Hello.")
        await second.interrupt()
        await other.until(lambda: other.finished)
        assert other.finished[0].finish_reason == common_pb2.FINISH_REASON_INTERRUPTED
    await all_free(probe)


async def test_full_stages_refuse_a_turn_and_not_the_conversation(open_chain, probe, monkeypatch):
    monkeypatch.setattr("gateway.speech.spoken_turn._PLACE_PATIENCE_S", 0.05)
    chain = await open_chain()
    probe.refuse["backbone"] = ResourceExhausted("all slots are in use", 0.1)
    async with talking(chain) as (say, talk):
        await say.say("Hello.")
        await talk.until(lambda: talk.finished)
        assert talk.finished[0].finish_reason == common_pb2.FINISH_REASON_REFUSED
        del probe.refuse["backbone"]
        await say.say("Hello.")
        await talk.until(lambda: len(talk.finished) == 2)
        assert talk.finished[1].finish_reason == common_pb2.FINISH_REASON_END_OF_SPEECH


async def test_a_unit_that_fails_costs_nothing_of_the_units_before(open_chain, probe):
    chain = await open_chain()
    probe.gate = 0
    async with talking(chain) as (say, talk):
        await say.say(TWO_UNITS)
        await probe.until(lambda: probe.active["backbone"] == 1)
        probe.refuse["backbone"] = CallError(grpc.StatusCode.INTERNAL, "the second one fails", reason="BROKEN")
        probe.gate = None
        probe.touch()
        async with asyncio.timeout(10):
            await talk.reading
        assert "the second one fails" in str(talk.error)
    once = np.repeat(np.arange(10, dtype=np.float32) / 1024, SAMPLES_PER_FRAME) + np.float32(MARK)
    np.testing.assert_array_equal(talk.audio[0][:-120], once[:-120])  # its end fades out
    assert len(talk.audio[0]) == len(once)
    await all_free(probe)


async def test_a_turn_of_an_empty_text_is_empty(open_chain, probe):
    chain = await open_chain()
    async with talking(chain) as (say, talk):
        await say.say("")
        await say.say("Hello.")
        await talk.until(lambda: len(talk.finished) == 2)
    assert [(one.turn, one.finish_reason) for one in talk.finished] == [
        (0, common_pb2.FINISH_REASON_EMPTY),
        (1, common_pb2.FINISH_REASON_END_OF_SPEECH),
    ]
    assert talk.finished[0].summary.finish_reason == common_pb2.FINISH_REASON_EMPTY


async def test_waiting_for_text_is_not_the_servers_time(open_chain, probe):
    chain = await open_chain(first_wait_ms=60_000, max_request_s=1)
    async with talking(chain) as (say, talk):
        await say.append("Wel")
        await asyncio.sleep(1.5)
        await say.append("l, it is late.")
        await say.flush()
        await talk.until(lambda: talk.finished)
    assert talk.finished[0].finish_reason == common_pb2.FINISH_REASON_END_OF_SPEECH
    assert 0 < talk.finished[0].summary.time_to_first_audio.ToMilliseconds() < 1400


async def test_a_long_turn_has_more_time_than_a_short_request(open_chain, probe):
    chain = await open_chain(max_request_s=1)
    probe.gate = 5
    async with talking(chain) as (say, talk):
        await say.say("It is a long story. " * 10)
        await talk.until(lambda: talk.units)
        await asyncio.sleep(1.5)
        probe.gate = None
        probe.touch()
        await talk.until(lambda: talk.finished)
    assert talk.finished[0].finish_reason == common_pb2.FINISH_REASON_END_OF_SPEECH


async def test_no_two_units_share_a_seed(open_chain, probe):
    chain = await open_chain()
    async with talking(chain, seed=5) as (say, talk):
        await say.say(TWO_UNITS)
        await say.say(TWO_UNITS)
        await talk.until(lambda: len(talk.finished) == 2)
    seeds = [request.sampling.seed for request in probe.requests]
    assert seeds[0] == 5 and seeds[2] == 6 and len(set(seeds)) == 4


async def test_a_turn_of_many_minutes_goes_through_several_chains(open_chain, probe, monkeypatch):
    monkeypatch.setattr("gateway.speech.turn._CHAIN_S", 1.2)
    chain = await open_chain()
    async with talking(chain) as (say, talk):
        await say.say(
            "This is a unit that is long enough to be one, for it has quite a lot of letters, over a hundred in all. "
            * 5
        )
        await talk.until(lambda: talk.finished)
    assert len(talk.units) == 5 and probe.calls["codec"] == probe.calls["watermark"] == 3
    assert [first for _, _, first in talk.units] == [n * 10 * SAMPLES_PER_FRAME for n in range(5)]
    once = np.repeat(np.arange(10, dtype=np.float32) / 1024, SAMPLES_PER_FRAME) + np.float32(MARK)
    np.testing.assert_array_equal(talk.audio[0], np.tile(once, 5))
    assert talk.finished[0].summary.frames == 50


@pytest.mark.parametrize("what", ["configure", "user_turn"])
async def test_what_is_being_encoded_holds_up_no_interrupt(open_chain, probe, what):
    chain = await open_chain()
    async with talking(chain) as (say, talk):
        await say.say("One two three four.")
        await talk.until(lambda: talk.finished)
        probe.stall.add("encoder")
        if what == "user_turn":
            await say.hear("Stop.", WAV)
        else:
            turn = speech_pb2.ContextSegment(text="My voice.")
            turn.audio.wav = WAV
            await say.configure(speech_pb2.ConverseConfigure(context=[turn]))
        await probe.until(lambda: probe.active["encoder"] == 1)
        await say.interrupt(heard_s=0.4)
        await talk.until(lambda: len(talk.finished) == 2)
        assert talk.finished[1].heard.ToMilliseconds() == 400
    await all_free(probe)
