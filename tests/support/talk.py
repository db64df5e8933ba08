"""A conversation over fake stages, and what has come of it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import numpy as np
from csm.speech.v1 import speech_pb2
from csm_client import SpeechClient
from csm_client.exceptions import SpeechError

from support.fake_stages import LOOKAHEAD, SAMPLES_PER_FRAME

WAV = b"RIFF"
FRAME_S = SAMPLES_PER_FRAME / 24_000


class Talk:
    """A conversation, and what has come of it so far."""

    def __init__(self, conversation):
        self.conversation = conversation
        self.events, self.audio, self.units = [], {}, []
        self.changed = asyncio.Event()
        self.error = None
        self.reading = asyncio.create_task(self._read())

    async def _read(self):
        try:
            async for event in self.conversation:
                self.events.append(event)
                if isinstance(event, speech_pb2.TurnAudio):
                    samples = np.frombuffer(event.data, "<f4")
                    self.audio[event.turn] = np.concatenate([self.audio.get(event.turn, samples[:0]), samples])
                elif isinstance(event, speech_pb2.SpokenUnit):
                    self.units.append((event.turn, event.text, event.first_sample))
                self.changed.set()
        except SpeechError as error:
            self.error = error
        self.changed.set()

    async def until(self, condition):
        async with asyncio.timeout(10):
            while not condition():
                assert self.error is None, self.error
                self.changed.clear()
                await self.changed.wait()

    def of(self, kind):
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def finished(self):
        return self.of(speech_pb2.TurnFinished)

    @property
    def warnings(self):
        names = speech_pb2.ConverseWarningCode.Name
        return [
            names(event.code).removeprefix("CONVERSE_WARNING_CODE_") for event in self.of(speech_pb2.ConverseWarning)
        ]

    def samples(self, turn):
        return len(self.audio.get(turn, ()))


@asynccontextmanager
async def talking(chain, **options):
    async with SpeechClient(chain.addresses["gateway"]) as client:
        async with client.converse(encoding="pcm_f32le", **options) as conversation:
            talk = Talk(conversation)
            try:
                yield conversation, talk
            finally:
                talk.reading.cancel()
                await asyncio.gather(talk.reading, return_exceptions=True)


async def all_free(probe):
    await probe.until(lambda: not +probe.active)


def tasks_of_speech():
    files = [getattr(task.get_coro(), "cr_code", None) for task in asyncio.all_tasks()]
    return [
        code for code in files if code and ("gateway/chain" in code.co_filename or "gateway/speech" in code.co_filename)
    ]


def prompt_of(request):
    """[(text, codes of the frames that follow, or None)] of a generation's prompt."""
    parts: list[list] = []
    for part in request.prompt:
        if part.WhichOneof("part") == "text":
            parts.append([bytes(part.text.ids[2:-1]).decode(), None])
        else:
            parts[-1][1] = [frame.codes[0] for frame in part.audio.frames]
    return [tuple(part) for part in parts]


async def speak_some(chain, probe, say, talk, frames=5):
    """A turn that is stopped by the gate after `frames` frames, as far as they can be heard."""
    probe.frames, probe.gate = 50, frames
    await say.say("One two three four five six seven eight nine ten.")
    await talk.until(lambda: talk.samples(0) >= frames * SAMPLES_PER_FRAME - LOOKAHEAD)
