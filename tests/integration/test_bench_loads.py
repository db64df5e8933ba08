"""`csm bench` against a gateway: conversations, voice prompts, and the gateway's own Riva face."""

import pytest
from csm_client import SpeechClient

from gateway.cli.bench import peers
from gateway.cli.bench.plan import Plan
from gateway.cli.bench.worker import Callers


async def records_of(clients, bundle, plan):
    events = []
    await Callers(clients, bundle, plan, events.append).run()
    return [event["record"] for event in events if "record" in event]


async def test_conversations_are_turns_heard_out_with_pauses_between(open_chain, probe):
    chain = await open_chain()
    async with SpeechClient(chain.addresses["gateway"]) as client:
        answer = await client.voices()
        plan = Plan(streams=2, duration_s=0.05, ramp_up_s=0.0, turns=3, pause_s=0.02, audio_s=0.4).within(answer)
        records = await records_of([client], answer.bundle, plan)
    assert [record["status"] for record in records] == ["OK"] * 6, records
    assert sorted(record["turn"] for record in records) == [1, 1, 2, 2, 3, 3]
    for earlier, later in zip(records, records[2:], strict=False):
        if later["turn"] > earlier["turn"]:
            assert later["intended_s"] >= earlier["intended_s"] + earlier["audio_s"]
    assert all(record["bytes"] and record["trace_id"] for record in records)


@pytest.mark.parametrize("is_shared", [True, False])
async def test_voice_prompts_are_one_for_all_or_each_its_own(open_chain, is_shared):
    chain = await open_chain()
    async with SpeechClient(chain.addresses["gateway"]) as client:
        answer = await client.voices()
        plan = Plan(streams=1, duration_s=0.2, ramp_up_s=0.0, audio_s=0.2, prompt_s=0.5, shares_prompt=is_shared)
        callers = Callers([client], answer.bundle, plan.within(answer), lambda _: None)
        clips = {callers._prompts.next()[0].audio for _ in range(3)}
        records = await records_of([client], answer.bundle, plan.within(answer))
    assert len(clips) == (1 if is_shared else 3)
    assert {record["status"] for record in records} == {"OK"}


async def test_the_riva_face_bears_the_same_load(open_chain):
    chain = await open_chain()
    peer = peers.RivaPeer(chain.addresses["gateway"], None, None)
    plan = Plan(streams=4, duration_s=0.2, ramp_up_s=0.0, audio_s=0.4, target="riva")
    records = await records_of([peer], None, plan)
    await peer.close()
    assert len(records) >= 4 and {record["status"] for record in records} == {"OK"}, records
    assert {round(record["audio_s"], 3) for record in records} == {0.8}  # the ten frames of the fake backbone
