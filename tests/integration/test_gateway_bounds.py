"""What the gateway lets into a stage at most, and how long it lets a stage take."""

import wave
from io import BytesIO

import pytest
from csm.common.v1 import common_pb2
from csm.speech.v1 import speech_pb2

from gateway.chain.codec import CODEC_WINDOW_FRAMES
from gateway.chain.watermark import WATERMARK_WINDOW_FRAMES

TURN_S = 0.5


def wav() -> bytes:
    """Half a second of silence."""
    held = BytesIO()
    with wave.open(held, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(24_000)
        file.writeframes(bytes(int(TURN_S * 48_000)))
    return held.getvalue()


# What the watermark holds by nature comes on top of its window: 700 samples, less than a frame.
@pytest.mark.parametrize(("stage", "window"), [("codec", CODEC_WINDOW_FRAMES), ("watermark", WATERMARK_WINDOW_FRAMES)])
async def test_a_stage_that_gives_nothing_back_is_sent_no_more_than_its_window(open_chain, probe, stage, window):
    chain = await open_chain()
    probe.frames, probe.silent = 100_000, {stage}
    call = chain.speech.StreamSynthesize(
        speech_pb2.StreamSynthesizeRequest(utterance=speech_pb2.Utterance(text="hello")), timeout=60
    )
    await probe.until(lambda: probe.taken[stage] >= window, 30)
    await probe.until_quiet()
    assert probe.taken[stage] == window
    assert probe.taken["codec"] <= CODEC_WINDOW_FRAMES + WATERMARK_WINDOW_FRAMES + 1
    call.cancel()
    await probe.until(lambda: not +probe.active)


async def test_the_deadline_goes_to_every_stage(open_chain, probe):
    chain = await open_chain()
    turn = speech_pb2.ContextSegment(speaker=0, text="before", audio=common_pb2.AudioClip(wav=wav()))
    await chain.speech.Synthesize(
        speech_pb2.SynthesizeRequest(utterance=speech_pb2.Utterance(text="hello", context=[turn])), timeout=30
    )
    await chain.speech.VerifyWatermark(
        speech_pb2.VerifyWatermarkRequest(audio=common_pb2.AudioClip(wav=wav())), timeout=30
    )
    assert set(probe.deadlines) == {"tokenizer", "encoder", "backbone", "codec", "watermark", "detector"}
    # A generous default stands behind it: 30 s come only from the caller.
    assert all(20 < deadline <= 31 for deadline in probe.deadlines.values()), probe.deadlines
