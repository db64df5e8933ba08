"""Codec and watermark are opened side by side: when one refuses, the other must not be opened afterwards."""

import asyncio
from types import SimpleNamespace

import pytest
from csm.codec.v1 import codec_pb2
from csm.common.v1 import common_pb2
from csm.watermark.v1 import watermark_pb2

from gateway.chain import ResumeBudget, SpeechChain
from services.runtime.errors import ResourceExhausted, UnavailableError


class Replicas:
    """Of one stage, whose `stream` does what the test says; `opening` counts who is inside."""

    def __init__(self, stream):
        self._stream, self.opening = stream, 0

    async def stream(self, *_, **__):
        self.opening += 1
        try:
            return await self._stream()
        finally:
            self.opening -= 1


@pytest.mark.parametrize("refused", ["codec", "watermark"])
async def test_a_refusal_ends_the_other_opening(refused):
    opened, full = asyncio.Event(), asyncio.Event()

    async def is_refused():
        await opened.wait()
        raise UnavailableError("gone")

    async def is_full():
        opened.set()
        await full.wait()
        raise ResourceExhausted("all permits are in use", 0.1)

    stages = {name: Replicas(is_refused if name == refused else is_full) for name in ("codec", "watermark")}
    stages["identity"] = common_pb2.BundleIdentity(sample_rate_hz=24_000)
    with pytest.raises(UnavailableError, match="gone"):
        async with SpeechChain(SimpleNamespace(**stages), resumes=ResumeBudget(0), timeout=lambda: 60.0) as chain:
            await chain.open()
    full.set()
    assert not stages["codec"].opening and not stages["watermark"].opening
    assert asyncio.all_tasks() == {asyncio.current_task()}


class OpenCall:
    """Of a stage that has admitted us."""

    is_closed = False

    def cancel(self):
        self.is_closed = True

    async def close(self):
        self.is_closed = True


async def test_a_slot_that_comes_in_the_moment_of_a_cancel_is_given_back():
    calls, inside = {"codec": OpenCall(), "watermark": OpenCall()}, asyncio.Event()
    pcm = common_pb2.AudioFormat(encoding=common_pb2.AUDIO_ENCODING_PCM_F32LE, sample_rate_hz=24_000, channels=1)
    started = {
        "codec": codec_pb2.DecodeStarted(format=pcm, samples_per_frame=1920),
        "watermark": watermark_pb2.EmbedStarted(format=pcm),
    }

    def opens(name):
        async def stream():
            inside.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:  # too late: the stage has answered
                return object(), calls[name], started[name]

        return stream

    stages = {name: Replicas(opens(name)) for name in calls}
    stages["identity"] = common_pb2.BundleIdentity(sample_rate_hz=24_000)
    async with SpeechChain(SimpleNamespace(**stages), resumes=ResumeBudget(0), timeout=lambda: 60.0) as chain:
        chain.spawn(chain.open())
        await inside.wait()
    assert calls["codec"].is_closed and calls["watermark"].is_closed
    assert asyncio.all_tasks() == {asyncio.current_task()}
