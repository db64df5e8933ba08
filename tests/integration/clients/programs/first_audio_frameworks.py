"""What first_audio.py measures of Pipecat and LiveKit."""

import asyncio
import time

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


class LiveKit:
    """Its plugin, by the sentence."""

    def __init__(self, address, text, voice):
        self._text = text
        self._tts = nvidia.TTS(server=address, use_ssl=False, voice=voice)

    async def first(self):
        began, first = time.perf_counter(), 0.0
        stream = self._tts.synthesize(self._text, conn_options=APIConnectOptions(max_retry=0))
        async for _ in stream:
            first = first or time.perf_counter() - began
        await stream.aclose()
        return first


class Pipecat(FrameProcessor):
    """A pipeline that stays, as in a call."""

    def __init__(self, address, text, voice):
        super().__init__()
        self._text = text
        tts = NvidiaTTSService(server=address, use_ssl=False, settings=NvidiaTTSService.Settings(voice=voice))
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
        await self._worker.queue_frame(TTSSpeakFrame(self._text))
        await asyncio.wait_for(self._stopped.wait(), 60)
        return self._first - began

    async def end(self):
        await self._worker.queue_frame(EndFrame())
        await self._running
