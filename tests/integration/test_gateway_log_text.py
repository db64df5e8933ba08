"""What callers say is in the gateway's log when the operator asks for it, and not otherwise."""

import logging

import pytest
from csm.common.v1 import common_pb2
from csm.speech.v1 import speech_pb2

TURN = speech_pb2.ContextSegment(speaker=1, text="violet harbour", audio=common_pb2.AudioClip(wav=b"RIFF"))
REQUEST = speech_pb2.SynthesizeRequest(utterance=speech_pb2.Utterance(text="amber lantern", context=[TURN]))


@pytest.mark.parametrize("asked", [False, True])
async def test_texts_are_logged_only_when_asked_for(open_chain, caplog, asked):
    caplog.set_level(logging.DEBUG)
    chain = await open_chain(log_text=asked)
    await chain.speech.Synthesize(REQUEST, timeout=10)
    said = [record.getMessage() for record in caplog.records if record.name.startswith("gateway")]
    assert ("speaker 1: violet harbour" in said, "speaker 0: amber lantern" in said) == (asked, asked)
    assert asked or not [record for record in caplog.records if "amber" in record.getMessage()]
