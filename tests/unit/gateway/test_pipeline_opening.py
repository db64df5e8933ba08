"""Two streams are opened side by side: when one is refused, the other must not be opened afterwards."""

import asyncio
from types import SimpleNamespace

import pytest
from csm.backbone.v1 import backbone_pb2
from csm.speech.v1 import speech_pb2

from gateway import pipeline
from gateway.pipeline import Synthesis
from services.runtime.errors import ResourceExhausted, UnavailableError


class Call:
    """An upstream call, as far as it is ended."""

    def __init__(self):
        self.cancelled = False

    def cancel(self):
        self.cancelled = True


@pytest.mark.parametrize("refused", ["codec", "watermark"])
async def test_a_refusal_ends_the_other_opening_and_every_call(monkeypatch, refused):
    async def no_prompt(*_):
        return []

    monkeypatch.setattr(pipeline, "build_prompt", no_prompt)
    synthesis = Synthesis(
        SimpleNamespace(held_back_frames=0),
        speech_pb2.Utterance(text="x"),
        max_frames=None,
        ramp_frames=[1],
        resumes=0,
        timeout=lambda: 60.0,
    )
    calls, opened, full = [], asyncio.Event(), asyncio.Event()

    def call():
        calls.append(Call())
        synthesis._calls.append(calls[-1])
        return calls[-1]

    async def open_backbone():
        return call(), backbone_pb2.GenerateStarted(seed=1)

    async def is_refused():
        call()
        await opened.wait()
        raise UnavailableError("gone")

    async def is_full():
        call()
        opened.set()
        await full.wait()
        raise ResourceExhausted("all permits are in use", 0.1)

    other = "watermark" if refused == "codec" else "codec"
    monkeypatch.setattr(synthesis, "_open_backbone", open_backbone)
    monkeypatch.setattr(synthesis, f"_open_{refused}", is_refused)
    monkeypatch.setattr(synthesis, f"_open_{other}", is_full)
    with pytest.raises(UnavailableError, match="gone"):
        async for _ in synthesis.events():
            pass
    full.set()  # whoever still waits would now try the next replica
    for _ in range(10):
        await asyncio.sleep(0)
    assert len(calls) == 3 and all(one.cancelled for one in calls)
    assert asyncio.all_tasks() == {asyncio.current_task()}
