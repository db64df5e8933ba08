"""Interrupts of conversations over fake stages: what stops, and what the context keeps."""

from __future__ import annotations

import asyncio
import random

from csm.common.v1 import common_pb2

from support.fake_stages import LOOKAHEAD, SAMPLES_PER_FRAME
from support.talk import FRAME_S, all_free, prompt_of, speak_some, talking, tasks_of_speech


async def test_an_interrupt_frees_everything_and_the_next_turn_knows_what_was_heard(open_chain, probe):
    chain = await open_chain()
    async with talking(chain) as (say, talk):
        await speak_some(chain, probe, say, talk, frames=20)
        assert probe.active["backbone"] == 1
        await say.interrupt(heard_s=15.5 * FRAME_S)
        await talk.until(lambda: talk.finished)
        await all_free(probe)
        (finished,) = talk.finished
        assert finished.finish_reason == common_pb2.FINISH_REASON_INTERRUPTED
        assert finished.heard.ToNanoseconds() == round(15.5 * FRAME_S * 1e9)
        assert "One two three four five six seven eight nine ten.".startswith(finished.heard_text)
        heard_words = finished.heard_text
        assert 0 < len(heard_words.split()) < 10
        sent = talk.samples(0)
        probe.gate, probe.frames = None, 10
        probe.touch()
        await say.say("Yes?")
        await talk.until(lambda: len(talk.finished) == 2)
        assert talk.samples(0) == sent  # nothing more of the interrupted turn
    assert prompt_of(probe.requests[1]) == [(heard_words, list(range(15))), ("Yes?", None)]


async def test_an_interrupt_before_the_first_audio(open_chain, probe):
    chain = await open_chain()
    probe.gate = 0
    async with talking(chain) as (say, talk):
        await say.say("Never heard.")
        await probe.until(lambda: probe.active["backbone"] == 1)
        await say.interrupt()
        await talk.until(lambda: talk.finished)
        await all_free(probe)
        assert talk.finished[0].heard.ToNanoseconds() == 0 and talk.finished[0].heard_text == ""
        probe.gate = None
        probe.touch()
        await say.say("Hello.")
        await talk.until(lambda: len(talk.finished) == 2)
    assert prompt_of(probe.requests[-1]) == [("Hello.", None)]


async def test_two_interrupts_the_second_can_only_hear_less(open_chain, probe):
    chain = await open_chain()
    async with talking(chain) as (say, talk):
        await speak_some(chain, probe, say, talk, frames=30)
        await say.interrupt(heard_s=20 * FRAME_S)
        await say.interrupt(heard_s=25 * FRAME_S)
        await say.interrupt(heard_s=10 * FRAME_S)
        await talk.until(lambda: len(talk.finished) == 3)
        assert [one.heard.ToMilliseconds() for one in talk.finished] == [1600, 1600, 800]
        assert {one.turn for one in talk.finished} == {0}


async def test_an_interrupt_after_the_last_frame_was_sent_still_cuts_the_context(open_chain, probe):
    chain = await open_chain()
    async with talking(chain) as (say, talk):
        await say.say("One two three four.")
        await talk.until(lambda: talk.finished)
        await say.interrupt(heard_s=5 * FRAME_S)
        await talk.until(lambda: len(talk.finished) == 2)
        assert talk.finished[1].finish_reason == common_pb2.FINISH_REASON_INTERRUPTED
        await say.say("Yes?")
        await talk.until(lambda: len(talk.finished) == 3)
    assert prompt_of(probe.requests[1])[0][1] == list(range(5))


async def test_an_interrupt_of_an_earlier_turn_drops_what_came_after_it(open_chain, probe):
    chain = await open_chain()
    async with talking(chain) as (say, talk):
        await say.say("One two three four.")
        await talk.until(lambda: talk.finished)  # made, but the listener still plays it
        probe.gate, probe.frames = 20, 50
        await say.say("Five six seven eight.")
        await talk.until(lambda: talk.samples(1) > 0)
        await say.interrupt(heard_s=5 * FRAME_S, turn=0, keep_later=False)
        await talk.until(lambda: len(talk.finished) == 3)
        assert {(one.turn, one.heard.ToMilliseconds()) for one in talk.finished[1:]} == {(0, 400), (1, 0)}
        probe.gate, probe.frames = None, 10
        probe.touch()
        await say.say("Yes?")
        await talk.until(lambda: len(talk.finished) == 4)
    assert prompt_of(probe.requests[-1]) == [(talk.finished[1].heard_text, list(range(5))), ("Yes?", None)]


async def test_a_second_interrupt_means_the_same_turn(open_chain, probe):
    chain = await open_chain()
    async with talking(chain) as (say, talk):
        await say.say("One two three four.")
        await talk.until(lambda: talk.finished)
        probe.gate, probe.frames = 0, 50
        await say.say("Never heard.")
        await probe.until(lambda: probe.active["backbone"] == 1)
        await say.interrupt(heard_s=0)
        await say.interrupt(heard_s=0)
        await talk.until(lambda: len(talk.finished) == 3)
        assert [one.turn for one in talk.finished] == [0, 1, 1]
        probe.gate, probe.frames = None, 10
        probe.touch()
        await say.say("Yes?")
        await talk.until(lambda: len(talk.finished) == 4)
    assert prompt_of(probe.requests[-1])[0] == ("One two three four.", list(range(10)))


async def test_an_interrupt_that_leaves_only_signs_of_a_text(open_chain, probe):
    chain = await open_chain()
    probe.frames, probe.gate = 50, 20
    async with talking(chain) as (say, talk):
        await say.say("— one two three four five six seven.")
        await talk.until(lambda: talk.samples(0) > 10 * SAMPLES_PER_FRAME)
        await say.interrupt(heard_s=6 * FRAME_S)
        await talk.until(lambda: talk.finished)
        assert talk.finished[0].heard_text == "—"
        probe.gate, probe.frames = None, 10
        probe.touch()
        await say.say("Yes?")
        await talk.until(lambda: len(talk.finished) == 2)
    assert prompt_of(probe.requests[-1]) == [("Yes?", None)]


async def test_turns_that_were_waiting_are_dropped_by_an_interrupt(open_chain, probe):
    chain = await open_chain()
    async with talking(chain) as (say, talk):
        await speak_some(chain, probe, say, talk)
        await say.say("A second turn.")
        await say.append("A third, not comp")
        await say.interrupt(keep_later=False)
        await talk.until(lambda: len(talk.finished) == 3)
        assert all(one.finish_reason == common_pb2.FINISH_REASON_INTERRUPTED for one in talk.finished)
        await all_free(probe)
    assert len(probe.requests) == 1


async def test_two_hundred_interrupts_at_random_moments_leave_what_was_heard_and_nothing_else(open_chain, probe):
    draw = random.Random(3)
    chain = await open_chain()
    text = "One two three four five six seven eight nine ten eleven twelve."
    async with talking(chain) as (say, talk):
        heard = []  # what the context must hold of each turn: words, frames
        for turn in range(200):
            probe.frames, probe.gate = 40, draw.randint(0, 40)
            await say.say(text)
            at_least = max(0, draw.randint(0, probe.gate) * SAMPLES_PER_FRAME - LOOKAHEAD)
            await talk.until(lambda turn=turn, least=at_least: talk.samples(turn) >= least)
            heard_s = draw.uniform(0, 50) * FRAME_S
            await say.interrupt(heard_s)
            await talk.until(lambda turn=turn: sum(one.turn == turn for one in talk.finished) >= 1)
            last = [one for one in talk.finished if one.turn == turn][-1]
            if last.finish_reason != common_pb2.FINISH_REASON_INTERRUPTED:
                # It had ended already: the interrupt is answered after that.
                await talk.until(lambda turn=turn: sum(one.turn == turn for one in talk.finished) == 2)
                last = [one for one in talk.finished if one.turn == turn][-1]
            sent = talk.samples(turn)
            frames = min(sent, round(heard_s * 24_000)) // SAMPLES_PER_FRAME
            assert last.heard.ToNanoseconds() == round(min(sent, round(heard_s * 24_000)) / 24_000 * 1e9)
            if last.heard_text:
                heard.append((last.heard_text, list(range(frames))))
            probe.gate = None
            probe.touch()
        await all_free(probe)
        probe.frames = 10
        await say.say("What do you remember?")
        await talk.until(lambda: talk.finished[-1].turn == 200)
    prompt = prompt_of(probe.requests[-1])
    said = prompt[:-1]
    assert said and said == heard[-len(said) :]
    async with asyncio.timeout(10):
        while tasks_of_speech():
            await asyncio.sleep(0.01)


async def test_an_interrupt_that_comes_late_stops_no_other_turn(open_chain, probe):
    chain = await open_chain()
    async with talking(chain) as (say, talk):
        await say.say("One two three four.")
        await talk.until(lambda: talk.finished)
        probe.gate, probe.frames = 5, 10
        await say.say("Five six seven eight.")
        await talk.until(lambda: talk.samples(1) > 0)
        await say.interrupt(heard_s=5 * FRAME_S, turn=0)
        await talk.until(lambda: len(talk.finished) == 2)
        assert (talk.finished[1].turn, talk.finished[1].heard.ToMilliseconds()) == (0, 400)
        assert talk.finished[1].summary.frames == 10
        probe.gate = None
        probe.touch()
        await talk.until(lambda: len(talk.finished) == 3)
        assert talk.finished[2].finish_reason == common_pb2.FINISH_REASON_END_OF_SPEECH
        assert talk.samples(1) == 10 * SAMPLES_PER_FRAME
        await say.say("Yes?")
        await talk.until(lambda: len(talk.finished) == 4)
    assert prompt_of(probe.requests[-1]) == [
        (talk.finished[1].heard_text, list(range(5))),
        ("Five six seven eight.", list(range(10))),
        ("Yes?", None),
    ]


async def test_the_clients_interrupt_names_the_turn_that_goes_on(open_chain, probe):
    chain = await open_chain()
    async with talking(chain) as (say, talk):
        assert say.turn is None
        await speak_some(chain, probe, say, talk)
        await say.say("Said all the same.")
        assert say.turn == 0
        await say.interrupt()
        probe.gate, probe.frames = None, 10
        probe.touch()
        await talk.until(lambda: len(talk.finished) == 2)
        assert say.turn == 1
    assert [(one.turn, one.finish_reason) for one in talk.finished] == [
        (0, common_pb2.FINISH_REASON_INTERRUPTED),
        (1, common_pb2.FINISH_REASON_END_OF_SPEECH),
    ]
    summary = talk.finished[0].summary
    assert summary.finish_reason == common_pb2.FINISH_REASON_INTERRUPTED
    assert summary.frames >= 4 and summary.samples == talk.samples(0) and summary.prompt_tokens > 0


async def test_a_storm_of_interrupts_ends_no_conversation(open_chain, probe):
    chain = await open_chain()
    async with talking(chain) as (say, talk):
        await speak_some(chain, probe, say, talk)
        for _ in range(300):
            await say.interrupt(heard_s=0.1, turn=0)
        await talk.until(lambda: talk.finished)
        probe.gate, probe.frames = None, 10
        probe.touch()
        await say.say("Yes?")
        await talk.until(lambda: talk.finished[-1].turn == 1)
        assert talk.finished[-1].finish_reason == common_pb2.FINISH_REASON_END_OF_SPEECH
    await all_free(probe)
