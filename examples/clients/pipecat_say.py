"""Pipecat speaks through a gateway: python examples/clients/pipecat_say.py [address] [file]"""

import asyncio
import sys
import wave

from pipecat.frames.frames import EndFrame, TTSAudioRawFrame, TTSSpeakFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.frame_processor import FrameProcessor
from pipecat.services.nvidia.tts import NvidiaTTSService
from pipecat.workers.runner import WorkerRunner


class Recorder(FrameProcessor):
    """Where your transport would be."""

    def __init__(self):
        super().__init__()
        self.audio = b""

    async def process_frame(self, frame, direction):
        await super().process_frame(frame, direction)
        if isinstance(frame, TTSAudioRawFrame):
            self.audio += frame.audio
        await self.push_frame(frame, direction)


async def main(address: str = "localhost:50050", file: str = "pipecat.wav") -> None:
    tts = NvidiaTTSService(server=address, use_ssl=False, settings=NvidiaTTSService.Settings(voice="heart"))
    recorder = Recorder()
    worker = PipelineWorker(Pipeline([tts, recorder]), params=PipelineParams(audio_out_sample_rate=24_000))
    await worker.queue_frames([TTSSpeakFrame("Hello there. How are you today?"), EndFrame()])
    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    await runner.run()
    with wave.open(file, "wb") as wav:
        wav.setparams((1, 2, 24_000, 0, "NONE", ""))
        wav.writeframes(recorder.audio)
    print(f"{file}: {len(recorder.audio) / 48_000:.2f} s by Pipecat")


asyncio.run(main(*sys.argv[1:]))
