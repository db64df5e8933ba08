"""Callers who leave while their chain opens, at any moment of it, leave no slot in use."""

from __future__ import annotations

import asyncio
import random
import time

import pytest
from csm.speech.v1 import speech_pb2

from support.talk import all_free, tasks_of_speech

AT_ONCE = 20


async def first_message(call) -> None:
    async for response in call:
        if response.HasField("started") or response.HasField("turn_started"):
            return


def streamed(chain):
    return chain.speech.StreamSynthesize(
        speech_pb2.StreamSynthesizeRequest(utterance=speech_pb2.Utterance(text="hello there")), timeout=60
    )


def conversed(chain):
    async def requests():
        yield speech_pb2.ConverseRequest(configure=speech_pb2.ConverseConfigure())
        yield speech_pb2.ConverseRequest(append_text=speech_pb2.AppendText(text="hello there. And "))
        await asyncio.Event().wait()

    return chain.speech.Converse(requests(), timeout=60)


async def leave(call, after_s: float) -> None:
    """Read as a caller does, and go."""
    reading = asyncio.create_task(first_message(call))
    await asyncio.wait([reading], timeout=after_s)
    await asyncio.sleep(0)
    call.cancel()
    await asyncio.gather(reading, return_exceptions=True)


async def opening_s(chain) -> float:
    """How long a chain opens while AT_ONCE of them do."""
    began_s = time.perf_counter()
    calls = [streamed(chain) for _ in range(AT_ONCE)]
    await asyncio.gather(*(first_message(call) for call in calls))
    took_s = time.perf_counter() - began_s
    for call in calls:
        call.cancel()
    return took_s


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 20))])
async def test_callers_who_leave_while_the_chain_opens_leave_no_slot_in_use(open_chain, probe, seed):
    draw, callers = random.Random(seed), 200 if seed else 60
    chain = await open_chain()
    probe.gate = 0  # no speech ends by itself
    await opening_s(chain)  # connections and code are warm
    longest_s = await opening_s(chain)
    await all_free(probe)
    before = probe.calls.copy()
    gate = asyncio.Semaphore(AT_ONCE)

    async def one() -> None:
        async with gate:
            await leave(draw.choice([streamed, conversed])(chain), draw.uniform(0, longest_s))

    await asyncio.gather(*(one() for _ in range(callers)))
    # Some left before a stage heard of them, most while it did.
    assert 0 < probe.calls["codec"] - before["codec"] <= callers
    await all_free(probe)
    stages = (chain.stages.backbone, chain.stages.codec, chain.stages.watermark)
    replicas = [replica for stage in stages for replica in stage.replicas]
    async with asyncio.timeout(10):
        while tasks_of_speech() or any(replica.load for replica in replicas):
            await asyncio.sleep(0.01)
