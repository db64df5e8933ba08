"""Codec and watermark are opened side by side: when one refuses, the other must not be opened afterwards."""

import asyncio
from types import SimpleNamespace

import pytest
from csm.common.v1 import common_pb2

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
