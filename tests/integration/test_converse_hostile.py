"""Conversations over fake stages with callers that do not behave."""

from __future__ import annotations

import asyncio
import random

import numpy as np
import pytest
from csm.common.v1 import common_pb2
from csm.speech.v1 import speech_pb2
from csm_client import SpeechClient
from csm_client.exceptions import InvalidRequest, Unavailable

from gateway.speech.spoken_turn import SpokenTurn
from support.fake_stages import LOOKAHEAD, SAMPLES_PER_FRAME
from support.talk import FRAME_S, WAV, all_free, prompt_of, speak_some, talking, tasks_of_speech


async def test_text_that_comes_after_an_interrupt_can_say_whose_it_is(open_chain, probe):
    chain = await open_chain()
    async with talking(chain) as (say, talk):
        probe.frames, probe.gate = 50, 5
        turn = say.next_turn
        await say.append("One two three four five six seven eight nine ten. And ", turn=turn)
        await talk.until(lambda: talk.samples(0) >= 5 * SAMPLES_PER_FRAME - LOOKAHEAD)
        await say.interrupt()
        await say.append("eleven.", turn=turn)
        probe.frames, probe.gate = 10, None
        probe.touch()
        await say.append("Yes?", turn=say.next_turn)
        await say.flush()
        await talk.until(lambda: len(talk.finished) == 2)
    assert [one.turn for one in talk.finished] == [0, 1]
    assert prompt_of(probe.requests[-1])[-1] == ("Yes?", None)


async def test_the_next_turns_number_ends_the_turn_before(open_chain, probe):
    chain = await open_chain()
    async with talking(chain) as (say, talk):
        await say.append("One.", turn=0)
        await say.append("Two.", turn=1)
        await say.flush()
        await talk.until(lambda: len(talk.finished) == 2)
    assert [text for _, text, _ in talk.units] == ["One.", "Two."]


@pytest.mark.parametrize("turn", [-1, 2])
async def test_text_for_a_turn_that_cannot_be_is_refused(open_chain, probe, turn):
    chain = await open_chain()
    async with talking(chain) as (say, talk):
        await say.say("One.")
        await say._send(speech_pb2.ConverseRequest(append_text=speech_pb2.AppendText(text="x", turn=turn)))
        async with asyncio.timeout(10):
            await talk.reading
        assert isinstance(talk.error, InvalidRequest) and talk.error.violations[0][0] == "append_text.turn"
    await all_free(probe)


async def test_a_mixed_storm_of_interrupts_ends_no_conversation(open_chain, probe):
    chain = await open_chain()
    async with talking(chain) as (say, talk):
        await speak_some(chain, probe, say, talk)
        for number in range(300):
            message = speech_pb2.InterruptTurn() if number % 2 else speech_pb2.InterruptTurn(turn=0, keep_later=True)
            await say._send(speech_pb2.ConverseRequest(interrupt=message))
        probe.gate, probe.frames = None, 10
        probe.touch()
        await say.say("Yes?")
        await talk.until(lambda: talk.finished and talk.finished[-1].turn == 1)
        assert talk.finished[-1].finish_reason == common_pb2.FINISH_REASON_END_OF_SPEECH
    await all_free(probe)


async def test_what_the_other_party_says_while_it_interrupts_is_heard(open_chain, probe):
    chain = await open_chain()
    async with talking(chain) as (say, talk):
        await speak_some(chain, probe, say, talk, frames=20)
        await say.hear("No, wait.", WAV)
        await say.interrupt(heard_s=15 * FRAME_S)
        await say.hear("I meant two.", WAV)
        probe.gate, probe.frames = None, 10
        probe.touch()
        await say.say("Two, then.")
        await talk.until(lambda: talk.finished and talk.finished[-1].turn == 1)
    heard = talk.finished[0].heard_text
    assert prompt_of(probe.requests[-1]) == [
        (heard, list(range(15))),
        ("No, wait.", [7, 7, 7]),
        ("I meant two.", [7, 7, 7]),
        ("Two, then.", None),
    ]


async def test_signs_between_sentences_cost_no_words(open_chain, probe):
    chain = await open_chain()
    async with talking(chain) as (say, talk):
        for piece in (
            "This is the first sentence of the text. ",
            "😂 😂 😂 ",
            "🎉",
            " And this is the last one. ",
            "👍",
        ):
            await say.append(piece)
        await say.flush()
        await talk.until(lambda: talk.finished)
    spoken = "".join(text for _, text, _ in talk.units)
    assert "first sentence" in spoken and "the last one" in spoken
    assert talk.finished[0].finish_reason == common_pb2.FINISH_REASON_END_OF_SPEECH


async def test_a_reader_who_pauses_gets_everything_and_holds_up_nobody_else(open_chain, probe):
    chain = await open_chain()
    probe.frames = 1000
    async with SpeechClient(chain.addresses["gateway"]) as client, client.converse(encoding="pcm_f32le") as slow:
        await slow.say("One two three.")
        await probe.until(lambda: probe.active["backbone"] == 1)
        before = await probe.until_quiet()
        assert before < 1000  # what is made ahead is bounded
        async with talking(chain) as (say, talk):
            probe.frames = 10
            await say.say("Hello.")
            await talk.until(lambda: talk.finished)
        audio = b""
        async for event in slow:
            if isinstance(event, speech_pb2.TurnAudio):
                audio += event.data
            if isinstance(event, speech_pb2.TurnFinished):
                break
    assert len(np.frombuffer(audio, "<f4")) == 1000 * SAMPLES_PER_FRAME
    await all_free(probe)


async def test_configured_twice_in_a_turn_the_next_turn_has_both(open_chain, probe):
    chain = await open_chain()
    async with talking(chain) as (say, talk):
        await speak_some(chain, probe, say, talk)
        await say.configure(speech_pb2.ConverseConfigure(speaker=2))
        await say.configure(speech_pb2.ConverseConfigure(sampling=common_pb2.SamplingOptions(seed=9)))
        probe.gate, probe.frames = None, 10
        probe.touch()
        await talk.until(lambda: talk.finished)
        await say.say("Yes?")
        await talk.until(lambda: len(talk.finished) == 2)
    last = probe.requests[-1]
    assert last.sampling.seed == 10 and list(last.prompt[-1].text.ids)[:2] == [1, 12]


async def test_a_server_that_stops_lets_no_turn_wait_for_room(open_chain, probe, monkeypatch):
    chain = await open_chain(max_streams=1)
    waits, enter = asyncio.Event(), SpokenTurn._enter

    def note(turn, places):
        waits.set()
        return enter(turn, places)

    async with talking(chain) as (first, one), talking(chain) as (second, other):
        await speak_some(chain, probe, first, one)
        monkeypatch.setattr(SpokenTurn, "_enter", note)
        await second.say("Hello.")
        async with asyncio.timeout(10):
            await waits.wait()  # a turn that has not come yet would be no loss: the conversation then ends in peace
        stopping = asyncio.create_task(chain.servers["gateway"].stop(20))
        async with asyncio.timeout(10):
            await other.reading
        assert isinstance(other.error, Unavailable) and other.error.reason == "GOING_AWAY"
        probe.gate = None
        probe.touch()
        async with asyncio.timeout(10):
            await one.reading
        assert one.finished[0].finish_reason == common_pb2.FINISH_REASON_END_OF_SPEECH
        await stopping


async def test_conversations_that_are_left_at_any_moment_leave_nothing_behind(open_chain, probe):
    chain = await open_chain()
    draw = random.Random(5)

    async def one() -> None:
        async with SpeechClient(chain.addresses["gateway"]) as client, client.converse() as talk:
            for _ in range(draw.randint(0, 3)):
                match draw.randint(0, 4):
                    case 0:
                        await talk.say("One two three. Four five six.")
                    case 1:
                        await talk.append("Half a ")
                    case 2:
                        await talk.hear("Hm?", WAV)
                    case 3:
                        await talk.interrupt()
                    case 4:
                        await talk.end()
                        return
                await asyncio.sleep(draw.uniform(0, 0.02))

    for _ in range(6):
        await asyncio.gather(*(one() for _ in range(8)), return_exceptions=True)
    await all_free(probe)
    async with asyncio.timeout(10):
        while tasks_of_speech():
            await asyncio.sleep(0.01)
