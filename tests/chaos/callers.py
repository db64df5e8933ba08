"""Callers who speak without a pause and hold each utterance to its undisturbed twin."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import grpc
import numpy as np
from csm.common.v1 import common_pb2
from csm.speech.v1 import speech_pb2, speech_pb2_grpc

TEXTS = (
    "Good morning. How are you today?",
    "The quick brown fox jumps over the lazy dog.",
    "Please call me back when you have a minute.",
    "It will rain in the afternoon, so take a coat.",
    "Thank you for waiting. Your table is ready now.",
    "She sells sea shells by the sea shore.",
)
MAX_AUDIO_MS = 4000
TIMEOUT_S = 120.0
TOLERANCE = 1e-4
BUFFER_S = 0.2
RATE_HZ = 24_000


@dataclass(frozen=True)
class Stream:
    """One utterance. off: samples that differ from the twin, are missing or too many. Times in seconds, monotonic.

    longest_silence_s: the longest time without audio of a listener who begins to play BUFFER_S after the first audio.
    """

    began_s: float
    ended_s: float
    first_audio_s: float | None
    longest_silence_s: float
    off: int
    error: str | None


async def speak(
    stub: speech_pb2_grpc.SpeechServiceStub, text: str, twin: np.ndarray | None
) -> tuple[Stream, np.ndarray]:
    """Speak `text` and compare; without a twin nothing is compared."""
    request = speech_pb2.StreamSynthesizeRequest(
        utterance=speech_pb2.Utterance(
            text=text, sampling=common_pb2.SamplingOptions(seed=TEXTS.index(text)), max_audio_ms=MAX_AUDIO_MS
        ),
        output=speech_pb2.OutputOptions(encoding=common_pb2.AUDIO_ENCODING_PCM_F32LE),
    )
    began = plays_until = time.monotonic()
    first: float | None = None
    longest, error = 0.0, None
    pieces: list[np.ndarray] = []
    call = stub.StreamSynthesize(request, timeout=TIMEOUT_S)
    try:
        async for response in call:
            if response.audio.data:
                now = time.monotonic()
                pieces.append(np.frombuffer(response.audio.data, "<f4"))
                if first is None:
                    first, plays_until = now - began, now + BUFFER_S
                longest = max(longest, now - plays_until)
                plays_until = max(plays_until, now) + len(pieces[-1]) / RATE_HZ
    except grpc.aio.AioRpcError as failure:
        error = f"{failure.code().name}: {failure.details()}"
    finally:
        call.cancel()
    samples = np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
    off = 0
    if twin is not None:
        both = min(len(samples), len(twin))
        off = int(np.sum(np.abs(samples[:both] - twin[:both]) > TOLERANCE))
        if error is None:
            off += abs(len(samples) - len(twin))
    return Stream(began, time.monotonic(), first, longest, off, error), samples


class Callers:
    """`count` callers at once, who say the first `texts` of TEXTS. streams: all that have ended, in the order of their ends."""

    def __init__(self, address: str, count: int, texts: int = len(TEXTS)):
        self._address, self._count, self._texts = address, count, TEXTS[:texts]
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False
        self.twins: dict[str, np.ndarray] = {}
        self.streams: list[Stream] = []

    async def learn(self) -> None:
        """Speak each text undisturbed. Raises: RuntimeError when one of them fails."""
        async with grpc.aio.insecure_channel(self._address) as channel:
            for text in self._texts:
                stream, samples = await speak(speech_pb2_grpc.SpeechServiceStub(channel), text, None)
                if stream.error is not None or not len(samples):
                    raise RuntimeError(f"undisturbed, {text!r} fails: {stream.error or 'no audio'}")
                self.twins[text] = samples

    def start(self) -> None:
        """Begin to call, until `stop`."""
        self._tasks = [asyncio.ensure_future(self._call(number)) for number in range(self._count)]

    async def stop(self) -> None:
        """Let the utterances that run come to their ends, and begin no other."""
        self._stopping = True
        await asyncio.gather(*self._tasks)

    async def _call(self, number: int) -> None:
        async with grpc.aio.insecure_channel(self._address) as channel:
            stub = speech_pb2_grpc.SpeechServiceStub(channel)
            while not self._stopping:
                text = self._texts[number % len(self._texts)]
                number += 1
                stream, _ = await speak(stub, text, self.twins[text])
                self.streams.append(stream)
                if stream.error is not None:
                    await asyncio.sleep(0.5)
