"""First audio through each client beside the plain one, in pairs: python first_audio.py GATEWAY HTTP PAIRS. JSON."""

import asyncio
import json
import statistics
import sys
import time

import openai
import riva.client
from csm_client import SpeechClient
from livekit.agents import APIConnectOptions
from livekit.plugins import nvidia
from loguru import logger
from pipecat.frames.frames import EndFrame, TTSAudioRawFrame, TTSSpeakFrame, TTSStoppedFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.frame_processor import FrameProcessor
from pipecat.services.nvidia.tts import NvidiaTTSService
from pipecat.workers.runner import WorkerRunner

logger.remove()
TEXT, VOICE = "Yes, that would be great.", "heart"


class Plain:
    """csm_client, asked over the same event loop."""

    def __init__(self, address):
        self._client = SpeechClient(address, insecure=True)

    async def first(self):
        began, first = time.perf_counter(), 0.0
        async for _ in self._client.stream(TEXT, voice=VOICE):
            first = first or time.perf_counter() - began
        return first


class Riva:
    """riva.client, which blocks."""

    def __init__(self, address):
        self._tts = riva.client.SpeechSynthesisService(riva.client.Auth(uri=address, use_ssl=False))

    async def first(self):
        return await asyncio.to_thread(self._run)

    def _run(self):
        began, first = time.perf_counter(), 0.0
        for _ in self._tts.synthesize_online(TEXT, VOICE, sample_rate_hz=24_000):
            first = first or time.perf_counter() - began
        return first


class LiveKit:
    """Its plugin, by the sentence."""

    def __init__(self, address):
        self._tts = nvidia.TTS(server=address, use_ssl=False, voice=VOICE)

    async def first(self):
        began, first = time.perf_counter(), 0.0
        stream = self._tts.synthesize(TEXT, conn_options=APIConnectOptions(max_retry=0))
        async for _ in stream:
            first = first or time.perf_counter() - began
        await stream.aclose()
        return first


class Pipecat(FrameProcessor):
    """A pipeline that stays, as in a call."""

    def __init__(self, address):
        super().__init__()
        tts = NvidiaTTSService(server=address, use_ssl=False, settings=NvidiaTTSService.Settings(voice=VOICE))
        params = PipelineParams(audio_out_sample_rate=24_000)
        self._worker = PipelineWorker(Pipeline([tts, self]), params=params, cancel_on_idle_timeout=False)
        self._first, self._stopped, self._running = 0.0, asyncio.Event(), None

    async def process_frame(self, frame, direction):
        await super().process_frame(frame, direction)
        if isinstance(frame, TTSAudioRawFrame):
            self._first = self._first or time.perf_counter()
        if isinstance(frame, TTSStoppedFrame):
            self._stopped.set()
        await self.push_frame(frame, direction)

    async def first(self):
        if self._running is None:
            runner = WorkerRunner(handle_sigint=False)
            await runner.add_workers(self._worker)
            self._running = asyncio.ensure_future(runner.run())
        self._first = 0.0
        self._stopped.clear()
        began = time.perf_counter()
        await self._worker.queue_frame(TTSSpeakFrame(TEXT))
        await asyncio.wait_for(self._stopped.wait(), 60)
        return self._first - began

    async def end(self):
        await self._worker.queue_frame(EndFrame())
        await self._running


class OpenAI:
    """Over HTTP."""

    def __init__(self, address):
        self._client = openai.AsyncOpenAI(base_url=f"http://{address}/v1", api_key="x", max_retries=0)

    async def first(self):
        began, first = time.perf_counter(), 0.0
        async with self._client.audio.speech.with_streaming_response.create(
            model="csm", voice=VOICE, input=TEXT, response_format="pcm"
        ) as answer:
            async for _ in answer.iter_bytes():
                first = first or time.perf_counter() - began
        return first


async def main(address, http, pairs):
    plain = Plain(address)
    pipecat = Pipecat(address)
    others = {"riva.client": Riva(address), "LiveKit": LiveKit(address), "Pipecat": pipecat, "openai": OpenAI(http)}
    result = {}
    for name, client in others.items():
        rows = []
        for number in range(int(pairs) + 1):
            order = (plain, client) if number % 2 else (client, plain)
            took = {one: await one.first() for one in order}
            if number:  # the first opens connections
                rows.append((took[plain], took[client]))
        result[name] = {
            "plain_ms": 1000 * statistics.median(row[0] for row in rows),
            "client_ms": 1000 * statistics.median(row[1] for row in rows),
            "over_ms": 1000 * statistics.median(row[1] - row[0] for row in rows),
        }
    await pipecat.end()
    print(json.dumps(result), flush=True)


asyncio.run(main(*sys.argv[1:]))
