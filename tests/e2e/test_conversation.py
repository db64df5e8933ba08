"""Conversations with the bundled voice, through five processes: words a few at a time, prefill of new tokens alone."""

import asyncio

import numpy as np
import pytest
import pytest_asyncio
from csm.common.v1 import common_pb2
from csm.speech.v1 import speech_pb2
from csm_client import SpeechClient

from services.runtime.audio import wav_bytes
from support.processes import Processes

pytestmark = pytest.mark.asyncio(loop_scope="module")
BLOCK_TOKENS = 16


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chain(tmp_path_factory):
    async with Processes(tmp_path_factory.mktemp("logs")) as processes:
        yield processes


async def turn_of(talk):
    """(events, audio) until the turn is over."""
    events, audio = [], b""
    async for event in talk:
        events.append(event)
        if isinstance(event, speech_pb2.TurnAudio):
            audio += event.data
        if isinstance(event, speech_pb2.TurnFinished):
            return events, np.frombuffer(audio, "<i2").astype(np.float64) / 32768
    raise AssertionError("the conversation ended")


async def test_words_that_come_one_by_one_are_spoken_without_a_gap_or_a_step(chain):
    words = "Hello there, my friend. These words come one at a time. Do you hear any gap?".split(" ")
    async with SpeechClient(chain.addresses["gateway"]) as client, client.converse(speaker=0, seed=6) as talk:

        async def write():
            for word in words:
                await talk.append(word + " ")
                await asyncio.sleep(0)
            await talk.flush()

        writing = asyncio.create_task(write())
        events, audio = await turn_of(talk)
        await writing
    finished = events[-1]
    units = [event for event in events if isinstance(event, speech_pb2.SpokenUnit)]
    assert "".join(unit.text for unit in units).strip() == " ".join(words)
    assert finished.finish_reason == common_pb2.FINISH_REASON_END_OF_SPEECH
    assert len(audio) == finished.summary.samples == finished.summary.frames * 1920
    assert not [event for event in events if isinstance(event, speech_pb2.ConverseWarning)]
    # No step where a unit begins that is larger than the steps within the speech around it.
    steps = np.abs(np.diff(audio))
    for unit in units[1:]:
        at = unit.first_sample
        assert steps[at - 24 : at + 24].max() <= np.quantile(steps, 0.9995)


async def test_each_turn_reads_its_new_tokens_alone(chain):
    clip = wav_bytes((0.1 * np.sin(np.arange(12_000) * 0.05)).astype(np.float32), 24_000)
    turns = 4
    async with SpeechClient(chain.addresses["gateway"]) as client, client.converse(speaker=0, seed=6) as talk:
        for turn in range(turns):
            if turn:
                await talk.hear("Go on.", clip)
            await talk.say(f"This is number {turn}.")
            await turn_of(talk)
        assert talk.started
        trace_id = bytes.fromhex(talk.started.trace_id)

    def generations():
        return [
            {a.key: a.value.int_value for a in span.attributes}
            for service, span in chain.receiver.spans
            if service == "csm-backbone" and span.name.endswith("/Generate") and span.kind == 2
            if span.trace_id == trace_id
        ]

    async with asyncio.timeout(20):
        while len(generations()) < turns:
            await asyncio.sleep(0.05)
    heard = len("[1]Go on.") + 2 + 7 + 1  # its text in the template, its frames, the one that ends them
    for turn, attributes in enumerate(sorted(generations(), key=lambda one: one["csm.prompt_tokens"])):
        new = len("[0]This is number zero.") + 2 + (heard if turn else 0)
        read = attributes["csm.prompt_tokens"] - attributes["csm.prefix_hit_tokens"]
        assert read <= new + 1 + BLOCK_TOKENS, (turn, attributes)
