"""Pipecat's Riva service in a pipeline: python pipecat_calls.py ADDRESS [JSON]. Prints what came as JSON."""

import asyncio
import json
import os
import sys

from loguru import logger
from pipecat.frames.frames import (
    EndFrame,
    ErrorFrame,
    InterruptionFrame,
    LLMFullResponseEndFrame,
    LLMFullResponseStartFrame,
    LLMTextFrame,
    TTSAudioRawFrame,
    TTSSpeakFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.frame_processor import FrameProcessor
from pipecat.services.nvidia.tts import NvidiaTTSService
from pipecat.services.openai.tts import OpenAITTSService
from pipecat.workers.runner import WorkerRunner

logger.remove()


class Heard(FrameProcessor):
    """What a transport would play. interrupt_at: frames after which the listener speaks."""

    def __init__(self, interrupt_at=None):
        super().__init__()
        self.sizes, self.errors, self.interrupted = [], [], False
        self._interrupt_at = interrupt_at
        self.worker = None

    async def process_frame(self, frame, direction):
        await super().process_frame(frame, direction)
        if isinstance(frame, TTSAudioRawFrame):
            self.sizes.append(len(frame.audio))
            if self._interrupt_at is not None and len(self.sizes) >= self._interrupt_at and not self.interrupted:
                self.interrupted = True
                await self.worker.queue_frame(InterruptionFrame())
                await self.worker.queue_frame(EndFrame())
        await self.push_frame(frame, direction)


async def main(address, options="{}"):
    given = json.loads(options)
    if given.get("http"):
        tts = OpenAITTSService(
            base_url=f"http://{address}/v1", api_key=given.get("token", "x"), sample_rate=given.get("rate", 24_000)
        )
    else:
        settings = {name: given[name] for name in ("voice", "synthesis_mode") if name in given}
        tts = NvidiaTTSService(
            server=address,
            use_ssl=bool(given.get("tls")),
            api_key=given.get("token"),
            settings=NvidiaTTSService.Settings(**settings),
        )
    heard = Heard(given.get("interrupt_at"))
    params = PipelineParams(audio_out_sample_rate=given.get("rate", 24_000))
    worker = heard.worker = PipelineWorker(Pipeline([tts, heard]), params=params, cancel_on_idle_timeout=False)

    async def on_error(_, frame):
        heard.errors.append(frame.error if isinstance(frame, ErrorFrame) else str(frame))

    worker.add_event_handler("on_pipeline_error", on_error)
    texts = given.get("texts", ["Hello there."])
    if given.get("llm"):  # as a language model's answer comes: word by word
        frames = [LLMFullResponseStartFrame()]
        frames += [LLMTextFrame(f"{word} ") for text in texts for word in text.split(" ")]
        frames.append(LLMFullResponseEndFrame())
    else:
        frames = [TTSSpeakFrame(text) for text in texts]
    if given.get("interrupt_at") is None:
        frames.append(EndFrame())
    await worker.queue_frames(frames)
    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    try:
        await asyncio.wait_for(runner.run(), given.get("timeout_s", 60))
    except TimeoutError:
        heard.errors.append("timeout")
    print(json.dumps({"sizes": heard.sizes, "errors": heard.errors, "interrupted": heard.interrupted}), flush=True)
    os._exit(0)  # its threads of a hung call would keep it


asyncio.run(main(*sys.argv[1:]))
