"""The watermark service searches clips: what it finds, what it refuses, when it stops."""

import asyncio
import threading

import grpc
import numpy as np
import pytest
from csm.common.v1 import common_pb2
from csm.watermark.v1 import watermark_pb2

from services.runtime.audio import wav_bytes
from services.watermark.key import PUBLIC_KEY
from services.watermark.weights import write_random
from support.watermark_calls import KEY, S16, audio, embed, field_of, raw, refusal, serving, start, write_bundle
from support.watermark_pair import TINY, speech_like


@pytest.fixture
async def service(pair_folder):
    async with serving(pair_folder) as stub:
        yield stub


async def test_int16_and_wav_are_as_good(service):
    samples = speech_like(2.0, seed=5)
    whole = np.rint(samples * 32768).astype("<i2")
    _, data, finished = await embed(service, [start(S16), audio(whole[:10001]), audio(whole[10001:])])
    marked = np.frombuffer(data, "<i2").astype(np.float32) / 32768
    assert finished.samples == len(marked) == len(samples)
    clip = common_pb2.AudioClip(wav=wav_bytes(marked, 24000))
    answer = await service.Detect(watermark_pb2.DetectRequest(audio=clip), timeout=60)
    assert answer.found and answer.decoded_key == KEY
    other = await service.Detect(watermark_pb2.DetectRequest(audio=clip, key=PUBLIC_KEY), timeout=60)
    assert not other.found and not other.HasField("position") and other.confidence < other.threshold
    clean = await service.Detect(watermark_pb2.DetectRequest(audio=raw(samples)), timeout=60)
    assert not clean.found


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (watermark_pb2.DetectRequest(), "audio.source"),
        (watermark_pb2.DetectRequest(audio=raw([])), "audio.raw.data"),
        (watermark_pb2.DetectRequest(audio=raw([np.inf])), "audio.raw.data"),
        (watermark_pb2.DetectRequest(audio=raw([0.0] * 9, rate_hz=0)), "audio.raw.format.sample_rate_hz"),
        (watermark_pb2.DetectRequest(audio=raw([0.0] * 9, channels=3)), "audio.raw.format.channels"),
        (watermark_pb2.DetectRequest(audio=raw([0.0] * 9, encoding=0)), "audio.raw.format.encoding"),
        (watermark_pb2.DetectRequest(audio=raw(np.zeros(24000 * 6))), "audio.raw.data"),
        (watermark_pb2.DetectRequest(audio=common_pb2.AudioClip(wav=b"RIFF")), "audio.wav"),
        (watermark_pb2.DetectRequest(audio=raw([0.0] * 9), key=b"1234"), "key"),
        (watermark_pb2.DetectRequest(audio=raw([0.0] * 9), key=b""), "key"),
        (watermark_pb2.DetectRequest(audio=raw([0.0] * 9), key=bytes(5)), "key"),
    ],
)  # fmt: skip
async def test_bad_clips_and_keys_are_refused(service, request_, field):
    error = await refusal(service.Detect(request_, timeout=10))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT and field_of(error) == field


async def test_a_caller_who_leaves_ends_the_search(pair_folder, monkeypatch):
    began, output_layers = threading.Event(), threading.Event()

    def search(self, samples, sample_rate_hz, key, stopped):
        began.set()
        while not stopped():
            pass
        output_layers.set()
        raise InterruptedError

    monkeypatch.setattr("services.watermark.detector.Detector.detect", search)
    async with serving(pair_folder, detections=1) as stub:
        call = stub.Detect(watermark_pb2.DetectRequest(audio=raw(speech_like(0.5))), timeout=30)
        waiting = asyncio.ensure_future(call.wait_for_connection())
        assert await asyncio.to_thread(began.wait, 10)
        full = await refusal(stub.Detect(watermark_pb2.DetectRequest(audio=raw(speech_like(0.5))), timeout=10))
        assert full.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        call.cancel()
        assert await asyncio.to_thread(output_layers.wait, 10)
        await asyncio.gather(waiting, return_exceptions=True)


async def test_untrained_nets_say_not_found_with_their_confidence(tmp_path):
    folder = write_bundle(tmp_path / "bundle", "untrained", lambda place: write_random(place, TINY, seed=0))
    async with serving(folder) as stub:
        _, data, _ = await embed(stub, [start(), audio(speech_like(1.5))])
        answer = await stub.Detect(watermark_pb2.DetectRequest(audio=raw(np.frombuffer(data, "<f4"))), timeout=60)
        assert not answer.found and 0 < answer.confidence < answer.threshold
