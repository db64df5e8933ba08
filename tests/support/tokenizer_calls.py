"""The tokenizer service on a loopback port, what it is asked, and what its answers hold."""

from contextlib import asynccontextmanager

import grpc
import numpy as np
import soxr
import torch
from csm.common.v1 import common_pb2
from csm.tokenizer.v1 import tokenizer_pb2, tokenizer_pb2_grpc

from services.runtime.server import StageServer
from services.runtime.settings import read
from services.tokenizer.__main__ import open_stage
from services.tokenizer.config import TokenizerSettings

F32 = common_pb2.AUDIO_ENCODING_PCM_F32LE


@asynccontextmanager
async def serve(bundle_folder, **overrides):
    settings = read(TokenizerSettings, {}, listen="127.0.0.1:0", model=str(bundle_folder), **overrides)
    async with open_stage(settings) as stage:
        server = StageServer(stage, settings)
        address = await server.start()
        try:
            async with grpc.aio.insecure_channel(address, [("grpc.enable_retries", 0)]) as channel:
                yield tokenizer_pb2_grpc.TokenizerServiceStub(channel)
        finally:
            await server.stop(0)


def tone(rate_hz, seconds=0.5, hz=300.0):
    return (0.4 * np.sin(2 * np.pi * hz * np.arange(int(rate_hz * seconds)) / rate_hz)).astype(np.float32)


FLOATS = tone(24_000)


def raw(samples, rate_hz, encoding=F32, channels=1):
    data = samples if isinstance(samples, bytes) else samples.astype("<f4").tobytes()
    form = common_pb2.AudioFormat(encoding=encoding, sample_rate_hz=rate_hz, channels=channels)
    return tokenizer_pb2.EncodeAudioRequest(audio=common_pb2.AudioClip(raw=common_pb2.RawAudio(format=form, data=data)))


def wav(data):
    return tokenizer_pb2.EncodeAudioRequest(audio=common_pb2.AudioClip(wav=data))


def codes_of(response):
    return np.array([frame.codes for frame in response.frames])


def expected(mimi, samples, rate_hz):
    """soxr, then moshi's own encode."""
    samples = soxr.resample(samples, rate_hz, 24_000)
    with torch.inference_mode():
        return mimi.encode(torch.from_numpy(samples)[None, None])[0].T.numpy()


def segments(*pairs):
    return tokenizer_pb2.TokenizeRequest(
        segments=[tokenizer_pb2.TextSegment(speaker=speaker, text=text) for speaker, text in pairs]
    )
