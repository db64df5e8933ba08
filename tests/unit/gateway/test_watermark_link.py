"""What the watermark's link makes of a stage that dies at the worst moment."""

import asyncio
from types import SimpleNamespace

import numpy as np
from csm.common.v1 import common_pb2
from csm.watermark.v1 import watermark_pb2

from gateway.chain.resumes import ResumeBudget
from gateway.chain.watermark import WatermarkLink
from services.runtime.errors import UnavailableError

RATE_HZ, SAMPLES = 24_000, 1920


class Replica:
    address = "there"

    def suspect(self):
        pass


class Codec:
    """A source of one piece of audio. rewound: where `read` was set to."""

    samples, samples_per_frame = SAMPLES, SAMPLES

    def __init__(self):
        self.rewound, self._pieces = [], [np.zeros(SAMPLES, np.float32)]

    async def read(self):
        return self._pieces.pop() if self._pieces else None

    async def rewind(self, sample):
        self.rewound.append(sample)
        self._pieces = [np.zeros(SAMPLES - sample, np.float32)]


class Call:
    """A stream of a watermark, as StageCall. dies: with the end of the audio."""

    def __init__(self, dies):
        self._dies, self._answers, self.ended = dies, [], False

    async def first(self, _):
        form = common_pb2.AudioFormat(encoding=common_pb2.AUDIO_ENCODING_PCM_F32LE, sample_rate_hz=RATE_HZ, channels=1)
        return watermark_pb2.EmbedStarted(format=form)

    async def write(self, request):
        if request.HasField("audio"):
            self._answers.append(watermark_pb2.EmbedResponse(audio={"data": request.audio.data}))

    async def done_writing(self):
        self.ended = True
        if self._dies:
            raise UnavailableError("gone")
        self._answers.append(watermark_pb2.EmbedResponse(finished={}))

    async def read(self):
        while not self.ended:
            await asyncio.sleep(0)
        if self._dies:
            raise UnavailableError("gone")
        return self._answers.pop(0)

    async def end(self):
        pass

    def cancel(self):
        pass

    async def close(self):
        pass

    def abandon(self, why):
        raise AssertionError(f"abandoned: {why}")


async def test_a_watermark_that_dies_as_the_audio_ends_is_resumed():
    calls = [Call(dies=True), Call(dies=False)]

    async def stream(start, admit, **_):
        call = calls.pop(0)
        return Replica(), call, await admit(call)

    stages = SimpleNamespace(
        watermark=SimpleNamespace(stream=stream), identity=common_pb2.BundleIdentity(sample_rate_hz=RATE_HZ)
    )
    codec, budget = Codec(), ResumeBudget(1)
    link = WatermarkLink(stages, codec, resumes=budget, timeout=lambda: 10.0)
    await link.open()
    link.start()
    async with asyncio.timeout(10):
        assert len(await link.read()) == SAMPLES
        assert await link.read() is None
    assert (budget.used, codec.rewound) == (1, [0])
    await link.close()
