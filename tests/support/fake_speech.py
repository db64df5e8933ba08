"""A SpeechService without a model behind it, on the real server runtime: real health, errors and spans."""

import asyncio
import math
from contextlib import asynccontextmanager

import grpc
import numpy as np
from csm.common.v1 import common_pb2
from csm.speech.v1 import speech_pb2, speech_pb2_grpc
from csm.voice.v1 import voice_pb2, voice_pb2_grpc

from gateway.output import Output
from services.runtime.errors import CallError, InvalidArgument, ResourceExhausted, UnavailableError
from services.runtime.server import Stage, StageServer
from services.runtime.settings import ServerSettings, read

RATE_HZ = 24_000
FRAME = 1920


def tone(samples: int) -> bytes:
    """s16le [samples]."""
    return (8000 * np.sin(2 * math.pi * 440 / RATE_HZ * np.arange(samples))).astype("<i2").tobytes()


async def _encoded(options):
    """The tone as the gateway encodes it."""
    output = Output(options, RATE_HZ, model="fake")
    for pieces in (await output.feed(np.frombuffer(tone(5 * FRAME), "<i2") / np.float32(32768)), await output.finish()):
        for data in pieces:
            yield data


class FakeSpeech(speech_pb2_grpc.SpeechServiceServicer):
    """The text says what goes wrong; any other text is spoken as 5 frames of a tone."""

    max_seq_len = 0
    version = ""

    def __init__(self):
        self.requests, self.metadata, self.remaining_s = [], [], []
        self.named = FakeVoices()
        self.ready = True
        self.running = 0
        self.begun = asyncio.Event()
        self.idle = asyncio.Event()  # set when a stream has ended, however it did
        self.trained = self.detectable = self.found = True
        self.voices = [speech_pb2.Voice(speaker=0, name="ada", description="calm")]

    async def StreamSynthesize(self, request, context):
        self.running += 1
        self.begun.set()
        try:
            self._take(request, context)
            text = request.utterance.text
            rate_hz = request.output.sample_rate_hz or RATE_HZ
            pcm = common_pb2.AudioFormat(
                encoding=common_pb2.AUDIO_ENCODING_PCM_S16LE, sample_rate_hz=rate_hz, channels=1
            )
            started = speech_pb2.SpeechStarted(format=pcm, seed=7, prompt_tokens=3, trace_id="ab" * 16)
            if text == "no start":
                yield _audio(tone(FRAME))
            yield speech_pb2.StreamSynthesizeResponse(started=started)
            if text == "hang":
                await asyncio.Event().wait()
            if (
                request.output.container > speech_pb2.CONTAINER_RAW
                or request.output.encoding > common_pb2.AUDIO_ENCODING_PCM_S16LE
            ):
                async for data in _encoded(request.output):
                    yield _audio(data)
                yield speech_pb2.StreamSynthesizeResponse(finished=speech_pb2.SpeechFinished(summary=self._summary(5)))
                return
            for _ in range(0 if text == "nothing to say" else 5):
                yield _audio(tone(FRAME))
            if text == "break":
                raise UnavailableError("codec: gone")
            while text == "endless":
                yield _audio(tone(FRAME))
                await asyncio.sleep(0)
            if text != "no summary":
                frames = 0 if text == "nothing to say" else 5
                finished = speech_pb2.SpeechFinished(summary=self._summary(frames))
                yield speech_pb2.StreamSynthesizeResponse(finished=finished)
        finally:
            self.running -= 1
            self.idle.set()

    async def Synthesize(self, request, context):
        self._take(request, context)
        return speech_pb2.SynthesizeResponse(audio=tone(5 * FRAME), summary=self._summary(5))

    async def VerifyWatermark(self, request, context):
        self._take(request, context)
        response = speech_pb2.VerifyWatermarkResponse(
            found=self.found, confidence=0.97 if self.found else 0.25, threshold=0.73, detectable=self.detectable
        )
        response.position.FromMilliseconds(120)
        return response

    async def VerifyWatermarkStream(self, requests, context):
        first = await anext(requests)
        yield speech_pb2.VerifyWatermarkStreamResponse(started=speech_pb2.VerifyWatermarkStarted())
        wav = b"".join([request.wav async for request in requests])
        request = speech_pb2.VerifyWatermarkRequest(audio=common_pb2.AudioClip(wav=wav), search=first.start.search)
        yield speech_pb2.VerifyWatermarkStreamResponse(finished=await self.VerifyWatermark(request, context))

    async def ListVoices(self, request, context):
        self._take(request, context)
        bundle = common_pb2.BundleIdentity(bundle_id="fake", codebooks=8, frame_rate_hz=12.5, sample_rate_hz=RATE_HZ)
        return speech_pb2.ListVoicesResponse(
            bundle=bundle,
            description="a tone",
            trained=self.trained,
            voices=self.voices,
            max_seq_len=self.max_seq_len,
            version=self.version,
        )

    def _take(self, request, context):
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        self.remaining_s.append(context.time_remaining())
        text = request.utterance.text if hasattr(request, "utterance") else ""
        match text:
            case "":
                if hasattr(request, "utterance"):
                    raise InvalidArgument("utterance.text", "must have 1 to 4000 characters, not 0")
            case "overloaded":
                raise ResourceExhausted("utterances: all 2 permits are in use", 1.5)
            case "unavailable once" if len(self.requests) == 1:
                raise UnavailableError("backbone: gone")
            case "unavailable":
                raise UnavailableError("backbone: gone")
            case "crash":
                raise RuntimeError("secret")

    @staticmethod
    def _summary(frames):
        summary = speech_pb2.SpeechSummary(
            finish_reason=common_pb2.FINISH_REASON_END_OF_SPEECH,
            frames=frames,
            samples=frames * FRAME,
            seed=7,
            real_time_factor=0.5,
        )
        summary.audio_duration.FromMilliseconds(frames * 80)
        summary.time_to_first_audio.FromMilliseconds(40)
        for stage, first_ms, last_ms in (("tokenizer", 2, 2), ("backbone", 20, 180), ("watermark", 40, 200)):
            timing = summary.stages.add(stage=stage)
            timing.first_output.FromMilliseconds(first_ms)
            timing.last_output.FromMilliseconds(last_ms)
        return summary


class FakeVoices(voice_pb2_grpc.VoiceServiceServicer):
    """Keeps voices in a dict, and the requests it was sent."""

    def __init__(self):
        self.kept, self.requests = {}, []

    async def CreateVoice(self, request, context):
        self.requests.append(request)
        voice = voice_pb2.Voice(
            name=request.name,
            id="ab" * 32,
            owner="local",
            speaker=request.speaker,
            transcript=request.transcript,
            consent_statement=request.consent_statement,
            labels=request.labels,
        )
        self.kept[request.name] = voice
        return voice_pb2.CreateVoiceResponse(voice=voice)

    async def GetVoice(self, request, context):
        return voice_pb2.GetVoiceResponse(voice=self._find(request.name))

    async def ListVoices(self, request, context):
        return voice_pb2.ListVoicesResponse(voices=self.kept.values())

    async def DeleteVoice(self, request, context):
        self.kept.pop(self._find(request.name).name)
        return voice_pb2.DeleteVoiceResponse()

    def _find(self, name):
        if name not in self.kept:
            raise CallError(grpc.StatusCode.NOT_FOUND, f"name: no voice {name!r}", reason="NO_VOICE")
        return self.kept[name]


def _audio(data):
    return speech_pb2.StreamSynthesizeResponse(audio=speech_pb2.SpeechAudio(data=data))


@asynccontextmanager
async def serving(**overrides):
    """(servicer, address) while it lasts."""
    fake = FakeSpeech()  # type: ignore[abstract]  # it has the calls that the tests make

    async def is_ready():
        return fake.ready

    def register(server):
        speech_pb2_grpc.add_SpeechServiceServicer_to_server(fake, server)
        voice_pb2_grpc.add_VoiceServiceServicer_to_server(fake.named, server)

    stage = Stage(
        service="csm.speech.v1.SpeechService",
        register=register,
        is_ready=is_ready,
    )
    server = StageServer(stage, read(ServerSettings, {}, listen="127.0.0.1:0", **overrides))
    address = await server.start()
    try:
        yield fake, address
    finally:
        await server.stop(0)
