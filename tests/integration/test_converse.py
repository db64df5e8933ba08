"""Conversations over fake stages: what the caller hears, what the model is asked, what is left behind."""

from __future__ import annotations

import asyncio

import grpc
import numpy as np
import pytest
from csm.common.v1 import common_pb2
from csm.speech.v1 import speech_pb2
from csm_client import ContextTurn
from csm_client.exceptions import InvalidRequest, SpeechError, Unavailable

from gateway.speech.inbox import Inbox
from services.runtime.errors import InvalidArgument
from support.fake_stages import LOOKAHEAD, MARK, SAMPLES_PER_FRAME
from support.talk import WAV, all_free, prompt_of, speak_some, talking


async def test_words_stream_in_and_units_stream_out_through_one_codec_and_one_watermark(open_chain, probe):
    chain = await open_chain(first_unit_chars=12)
    async with talking(chain) as (say, talk):
        for word in ("Well, ", "hello there, ", "my ", "friend. ", "How ", "are ", "you?"):
            await say.append(word)
        await say.flush()
        await say.end()
        await talk.until(lambda: talk.reading.done())
    assert [text for _, text, _ in talk.units] == ["Well, hello there, ", "my friend. How are you?"]
    assert [first for _, _, first in talk.units] == [0, 10 * SAMPLES_PER_FRAME]
    once = np.repeat(np.arange(10, dtype=np.float32) / 1024, SAMPLES_PER_FRAME) + np.float32(MARK)
    np.testing.assert_array_equal(talk.audio[0], np.concatenate([once, once]))
    assert probe.calls["codec"] == probe.calls["watermark"] == 1 and probe.calls["backbone"] == 2
    assert prompt_of(probe.requests[1]) == [
        ("Well, hello there, ", list(range(10))),
        ("my friend. How are you?", None),
    ]
    (finished,) = talk.finished
    assert finished.finish_reason == common_pb2.FINISH_REASON_END_OF_SPEECH
    assert finished.heard_text == "Well, hello there, my friend. How are you?"
    assert finished.heard.ToMilliseconds() == 1600 and finished.summary.frames == 20
    await all_free(probe)


async def test_the_first_audio_does_not_wait_for_the_turns_end(open_chain, probe):
    chain = await open_chain()
    async with talking(chain) as (say, talk):
        await say.append("This is one sentence. And ")
        await talk.until(lambda: talk.samples(0) > 0)
        assert not talk.finished
        await say.append("another.")
        await say.flush()
        await talk.until(lambda: talk.finished)
    assert talk.samples(0) >= 20 * SAMPLES_PER_FRAME


async def test_late_text_is_waited_for_in_silence(open_chain, probe):
    chain = await open_chain(first_wait_ms=60_000)
    async with talking(chain) as (say, talk):
        await say.append("This is one sentence. And ")
        await talk.until(lambda: "TEXT_LATE" in talk.warnings)
        # All that was said is out, the watermark's look-ahead too.
        await talk.until(lambda: talk.samples(0) >= 10 * SAMPLES_PER_FRAME)
        await say.append("another one.")
        await say.flush()
        await talk.until(lambda: talk.finished)
    silence = -(-LOOKAHEAD // SAMPLES_PER_FRAME) * SAMPLES_PER_FRAME + SAMPLES_PER_FRAME
    once = np.repeat(np.arange(10, dtype=np.float32) / 1024, SAMPLES_PER_FRAME) + np.float32(MARK)
    quiet = np.full(silence, MARK, np.float32)
    np.testing.assert_array_equal(talk.audio[0], np.concatenate([once, quiet, once]))
    assert talk.units[1] == (0, "And another one.", 10 * SAMPLES_PER_FRAME + silence)


async def test_the_other_partys_turn_is_encoded_at_once_and_heard_by_the_next_turn(open_chain, probe):
    chain = await open_chain()
    async with talking(chain) as (say, talk):
        await speak_some(chain, probe, say, talk)
        await say.hear("What did you say?", WAV, speaker=4)
        await probe.until(lambda: probe.calls["encoder"] == 1)  # while we speak
        probe.gate, probe.frames = None, 10
        probe.touch()
        await talk.until(lambda: talk.finished)
        await say.say("I said ten.")
        await talk.until(lambda: len(talk.finished) == 2)
    prompt = prompt_of(probe.requests[1])
    assert [text for text, _ in prompt][1:] == ["What did you say?", "I said ten."]
    assert prompt[1][1] == [7, 7, 7]
    assert list(probe.requests[1].prompt[2].text.ids)[:2] == [1, 14]  # the fake tokenizer's speaker 4


async def test_another_party_who_says_nothing_speakable_is_left_out(open_chain, probe):
    chain = await open_chain()
    async with talking(chain) as (say, talk):
        await say.hear("…", WAV)
        await say.say("Pardon?")
        await talk.until(lambda: talk.finished)
    assert talk.warnings == ["NOTHING_SPEAKABLE"]
    assert prompt_of(probe.requests[0]) == [("Pardon?", None)]


async def test_clips_of_one_conversation_do_not_take_all_encoders(open_chain, probe):
    chain = await open_chain()
    async with talking(chain) as (say, talk):
        for number in range(12):
            await say.hear(f"Number {number}.", WAV)
        await say.say("Yes?")
        await talk.until(lambda: talk.finished)
    assert len(prompt_of(probe.requests[0])) == 13 and probe.encoding_at_once <= 4


async def test_the_voice_prompt_stays_and_the_oldest_turns_leave(open_chain, probe):
    chain = await open_chain()
    async with talking(chain, context=[ContextTurn(0, "My voice.", WAV)]) as (say, talk):
        for turn in range(14):
            await say.say(f"Turn {turn} is some sixty characters long, as spoken text often is.")
            await talk.until(lambda turn=turn: len(talk.finished) == turn + 1)
    assert "CONTEXT_DROPPED" in talk.warnings
    assert all(prompt_of(request)[0] == ("My voice.", [7, 7, 7]) for request in probe.requests)
    last = prompt_of(probe.requests[-1])
    assert last[-2][0].startswith("Turn 12") and not last[1][0].startswith("Turn 0")
    # In halves, so that most turns begin with what the turn before began with.
    begins = [prompt_of(request)[1][0] for request in probe.requests[1:]]
    assert len(set(begins)) <= 3


async def test_a_conversation_without_a_turn_holds_nothing(open_chain, probe):
    chain = await open_chain(max_streams=1)
    async with talking(chain) as (_, idle), talking(chain) as (say, talk):
        await say.say("Hello.")
        await talk.until(lambda: talk.finished)
        await all_free(probe)
        assert not idle.events


async def test_leaving_frees_everything(open_chain, probe):
    chain = await open_chain()
    async with talking(chain) as (say, talk):
        await speak_some(chain, probe, say, talk)
    await all_free(probe)


@pytest.mark.parametrize(
    ("send", "field"),
    [
        (lambda say: say.interrupt(turn=3), "interrupt.turn"),
        (lambda say: say.append("x" * 100_001), "append_text.text"),
        (lambda say: say.configure(speech_pb2.ConverseConfigure(max_audio_ms=0)), "configure.max_audio_ms"),
        (
            lambda say: say.configure(speech_pb2.ConverseConfigure(output=speech_pb2.OutputOptions(sample_rate_hz=1))),
            "configure.output.sample_rate_hz",
        ),
    ],
)
async def test_bad_messages_end_the_conversation_and_name_the_field(open_chain, probe, send, field):
    chain = await open_chain()
    async with talking(chain) as (say, talk):
        await send(say)
        async with asyncio.timeout(10):
            await talk.reading
        assert isinstance(talk.error, InvalidRequest)
        assert talk.error.violations[0][0] == field
    await all_free(probe)


async def test_a_seed_gives_each_turn_its_own(open_chain, probe):
    chain = await open_chain()
    async with talking(chain, seed=5) as (say, talk):
        await say.say("One.")
        await say.say("Two.")
        await talk.until(lambda: len(talk.finished) == 2)
    assert [request.sampling.seed for request in probe.requests] == [5, 6]
    assert [one.summary.seed for one in talk.finished] == [5, 6]
    assert [one.summary.prompt_tokens > 0 for one in talk.finished] == [True, True]


async def test_a_cap_that_one_unit_fills_exactly_ends_the_turn(open_chain, probe):
    chain = await open_chain()
    probe.cap = True
    async with talking(chain, max_audio_ms=800) as (say, talk):
        await say.say("This is the first unit, which is long enough to be one by itself, for it has over a hundred letters. "
                      "And this is the second one.")  # fmt: skip
        await talk.until(lambda: talk.finished)
    assert talk.finished[0].finish_reason == common_pb2.FINISH_REASON_MAX_LENGTH
    assert len(talk.units) == 1 and talk.samples(0) == 10 * SAMPLES_PER_FRAME
    assert len(probe.requests) == 1


async def test_a_refused_option_has_the_name_that_the_caller_gave_it(open_chain, probe):
    chain = await open_chain()
    probe.refuse["backbone"] = InvalidArgument("sampling.temperature", "must be 0 or more")
    async with talking(chain) as (say, talk):
        await say.say("Hello.")
        async with asyncio.timeout(10):
            await talk.reading
        assert isinstance(talk.error, InvalidRequest)
        assert talk.error.violations[0][0] == "configure.sampling.temperature"
    await all_free(probe)


async def test_a_turn_whose_text_stays_away_is_idle(open_chain, probe):
    chain = await open_chain(first_wait_ms=60_000, conversation_idle_s=1, max_streams=1)
    async with talking(chain) as (say, talk):
        await say.append("This never")
        async with asyncio.timeout(20):
            await talk.reading
        assert talk.error.reason == "IDLE"


async def test_an_empty_unit_ends_its_turn_and_what_was_heard_stays(open_chain, probe):
    chain = await open_chain(first_wait_ms=60_000)
    async with talking(chain) as (say, talk):
        await say.append("This is one sentence. And ")
        await talk.until(lambda: "TEXT_LATE" in talk.warnings and talk.samples(0) >= 10 * SAMPLES_PER_FRAME)
        probe.frames = 0
        await say.append("another one.")
        await say.flush()
        await talk.until(lambda: talk.finished)
        assert talk.finished[0].finish_reason == common_pb2.FINISH_REASON_EMPTY
        assert talk.finished[0].heard_text == "This is one sentence. "
        probe.frames = 10
        await say.say("Again.")
        await talk.until(lambda: len(talk.finished) == 2)
    assert prompt_of(probe.requests[-1]) == [("This is one sentence. ", list(range(10))), ("Again.", None)]


async def test_text_that_was_late_once_is_not_late_ever_after(open_chain, probe):
    chain = await open_chain(first_wait_ms=60_000)
    probe.frames = 5
    async with talking(chain) as (say, talk):
        await say.append("This is one sentence. And ")
        await talk.until(lambda: "TEXT_LATE" in talk.warnings)
        await asyncio.sleep(4)  # the listener hears silence
        probe.frames = 40  # 3.2 s
        await say.append("another one. And ")
        await talk.until(lambda: talk.samples(0) >= 30 * SAMPLES_PER_FRAME)
        await say.append("a third.")
        await say.flush()
        await talk.until(lambda: talk.finished)
    assert talk.warnings == ["TEXT_LATE"]


async def test_an_empty_turn_is_said_to_be_empty(open_chain, probe):
    chain = await open_chain()
    probe.frames = 0
    async with talking(chain) as (say, talk):
        await say.say("Hello.")
        await talk.until(lambda: talk.finished)
        assert talk.finished[0].finish_reason == common_pb2.FINISH_REASON_EMPTY
        probe.frames = 10
        await say.say("Again.")
        await talk.until(lambda: len(talk.finished) == 2)
    assert prompt_of(probe.requests[-1]) == [("Again.", None)]


async def test_a_stopping_server_lets_the_turn_end_and_says_so(open_chain, probe, monkeypatch):
    chain = await open_chain()
    came, append = asyncio.Event(), Inbox._append

    def note(inbox, text):
        append(inbox, text)
        came.set()

    async with talking(chain) as (say, talk):
        await speak_some(chain, probe, say, talk)
        monkeypatch.setattr(Inbox, "_append", note)
        await say.say("Never said.")
        async with asyncio.timeout(10):
            await came.wait()  # a turn that has not come yet is no loss: the conversation would end in peace
        stopping = asyncio.create_task(chain.servers["gateway"].stop(20))
        await asyncio.sleep(0)
        probe.gate = None
        probe.touch()
        async with asyncio.timeout(10):
            await talk.reading
        assert len(talk.finished) == 1 and "GOING_AWAY" in talk.warnings
        assert isinstance(talk.error, Unavailable) and talk.error.reason == "GOING_AWAY"
        await stopping


async def test_a_generator_that_dies_in_a_turn_costs_no_speech(open_chain, probe):
    chain = await open_chain()
    probe.break_at = 4
    async with talking(chain) as (say, talk):
        await say.say("One two three.")
        await talk.until(lambda: talk.finished)
    np.testing.assert_array_equal(
        talk.audio[0], np.repeat(np.arange(10, dtype=np.float32) / 1024, SAMPLES_PER_FRAME) + np.float32(MARK)
    )


async def test_text_that_is_late_for_long_costs_no_slot_and_no_words(open_chain, probe, monkeypatch):
    monkeypatch.setattr("gateway.speech.turn._KEEP_CHAIN_S", 0.05)
    chain = await open_chain(first_wait_ms=60_000)
    async with talking(chain) as (say, talk):
        await say.append("This is one sentence. ")
        await talk.until(lambda: "TEXT_LATE" in talk.warnings)
        await all_free(probe)
        assert not talk.finished
        await say.append("And another one.")
        await say.flush()
        await talk.until(lambda: talk.finished)
    assert probe.calls["codec"] == probe.calls["watermark"] == 2
    assert [text for _, text, _ in talk.units] == ["This is one sentence. ", "And another one."]
    assert talk.units[1][2] + 10 * SAMPLES_PER_FRAME == talk.samples(0)
    assert talk.finished[0].summary.frames == 20
    assert len(talk.of(speech_pb2.TurnStarted)) == 1


async def test_a_turn_of_signs_alone_is_empty(open_chain, probe):
    chain = await open_chain()
    async with talking(chain) as (say, talk):
        await say.say("   ")
        await say.say("Hello.")
        await talk.until(lambda: len(talk.finished) == 2)
    assert [one.finish_reason for one in talk.finished] == [
        common_pb2.FINISH_REASON_EMPTY,
        common_pb2.FINISH_REASON_END_OF_SPEECH,
    ]


@pytest.mark.parametrize("what", ["turns", "clips", "interrupts", "settings"])
async def test_what_waits_is_bounded(open_chain, probe, what):
    chain = await open_chain(max_message_mib=1)
    async with talking(chain) as (say, talk):
        await speak_some(chain, probe, say, talk)
        try:
            for _ in range(100):
                match what:
                    case "turns":
                        await say.say("x")
                    case "clips":
                        await say.hear("x", b"RIFF" + bytes(500_000))
                    case "interrupts":
                        await say.interrupt()
                    case "settings":
                        await say.configure(speech_pb2.ConverseConfigure(speaker=1))
        except SpeechError:
            pass  # the conversation has ended under us
        if what != "interrupts":  # those may be taken as fast as they come
            async with asyncio.timeout(10):
                await talk.reading
            # A write of ours that meets the call's end makes gRPC lose the status now and then.
            lost = str(talk.error) == "Internal error from Core"
            assert lost or talk.error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    await all_free(probe)


async def test_a_listener_who_hears_much_and_says_nothing_takes_no_memory(open_chain, probe):
    chain = await open_chain()
    async with talking(chain) as (say, talk):
        for number in range(400):
            await say.hear("What they say is about thirty.", WAV)
            await probe.until(lambda n=number: probe.calls["encoder"] > n and not probe.active["encoder"])
        await talk.until(lambda: talk.warnings.count("CONTEXT_DROPPED") > 5)
        await say.say("Hello.")
        await talk.until(lambda: talk.finished)
    assert len(prompt_of(probe.requests[0])) < 777 / 30
