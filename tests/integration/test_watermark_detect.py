"""The watermark service searches clips: what it finds, what it refuses, when it stops."""

import asyncio
import io
import threading

import grpc
import numpy as np
import pytest
import soundfile
from csm.common.v1 import common_pb2
from csm.watermark.v1 import watermark_pb2
from google.protobuf.duration_pb2 import Duration

from gateway.audio import open_encoder
from services.runtime import audio_file
from services.runtime.audio import wav_bytes
from services.watermark.detector import DetectionSession
from services.watermark.key import PUBLIC_KEY
from services.watermark.weights import write_random
from support.watermark_calls import F32, KEY, S16, audio, embed, field_of, raw, refusal, serving, start, write_bundle
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


async def searched_file(service, data, piece=1000):
    """The last answer to a file that comes in pieces."""

    async def requests():
        yield watermark_pb2.DetectStreamRequest(start=watermark_pb2.DetectStart())
        for at in range(0, len(data), piece):
            yield watermark_pb2.DetectStreamRequest(audio=watermark_pb2.DetectAudio(data=data[at : at + piece]))

    *_, last = [response async for response in service.DetectStream(requests(), timeout=60)]
    return last.finished


async def test_files_of_every_kind_are_searched_whole_and_in_pieces(service):
    samples = speech_like(2.0, seed=5)
    _, data, _ = await embed(service, [start(S16), audio(np.rint(samples * 32768).astype("<i2"))])
    marked = np.frombuffer(data, "<i2").astype(np.float32) / 32768
    for name in ("flac", "wav"):
        encoder = open_encoder(name, input_rate_hz=24_000)
        file = b"".join([*encoder.feed(marked), *encoder.finish()])
        clip = common_pb2.AudioClip(file=file)
        answer = await service.Detect(watermark_pb2.DetectRequest(audio=clip), timeout=60)
        in_pieces = await searched_file(service, file)
        assert answer.found and in_pieces.found
        assert in_pieces.searched.ToMilliseconds() == answer.searched.ToMilliseconds() == 2000
    for name in ("mp3", "ogg_opus"):
        encoder = open_encoder(name, input_rate_hz=24_000)
        file = b"".join([*encoder.feed(marked), *encoder.finish()])
        assert (await searched_file(service, file)).searched.ToMilliseconds() == pytest.approx(2000, abs=110)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not a WAV file"),
        (b"hello", "is no WAV, FLAC, MP3 or Ogg"),
        (b"fLaC" + bytes(9000), "cannot be decoded"),
        (b"RIFF" + bytes(9000), "no RIFF"),
    ],
)
async def test_bad_files_in_pieces_are_refused(service, data, says):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await searched_file(service, data, piece=100_000)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details().startswith("audio.data: ") and says in caught.value.details()


async def test_a_small_file_of_days_is_refused_and_one_of_hours_ends_with_the_limit(service, monkeypatch):
    silence = io.BytesIO()
    soundfile.write(silence, np.zeros(8_000 * 7200, np.int16), 8_000, format="FLAC")
    data = silence.getvalue()
    assert len(data) < 200_000
    answer = await searched_file(service, data, piece=1 << 20)
    assert answer.searched.ToTimedelta().total_seconds() == 7200 and not answer.found
    decoded = []
    next_block = audio_file.CompressedFile.next_block
    with monkeypatch.context() as patch:
        patch.setattr(audio_file.CompressedFile, "next_block", lambda self: decoded.append(1) or next_block(self))
        patch.setattr(DetectionSession, "search", lambda self: setattr(self, "limited", True))
        patch.setattr(DetectionSession, "finish", lambda self: self._detection(self._findings, []))
        await searched_file(service, data, piece=1 << 20)
    assert len(decoded) < 300
    monkeypatch.setattr("services.watermark.detect_servicer._MAX_COMPRESSED_S", 3600.0)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await searched_file(service, data, piece=1 << 20)
    assert "audio.data: lasts 7200.00 s, at most 3600 s are taken" in caught.value.details()


async def test_a_compressed_file_in_pieces_has_a_limit(service, monkeypatch):
    monkeypatch.setattr("services.watermark.detect_servicer.MAX_COMPRESSED_BYTES", 8_000)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await searched_file(service, b"fLaC" + bytes(9000), piece=100_000)
    assert "a flac file is taken up to 0 MB" in caught.value.details()


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (watermark_pb2.DetectRequest(), "audio.source"),
        (watermark_pb2.DetectRequest(audio=raw([])), "audio.raw.data"),
        (watermark_pb2.DetectRequest(audio=raw([np.inf])), "audio.raw.data"),
        (watermark_pb2.DetectRequest(audio=raw([0.0] * 9, rate_hz=0)), "audio.raw.format.sample_rate_hz"),
        (watermark_pb2.DetectRequest(audio=raw([0.0] * 9, channels=9)), "audio.raw.format.channels"),
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


async def searched(stub, samples, size, rate_hz=24000, **fields):
    """(searched seconds of each progress message, the answer) of audio [n, channels]."""

    async def requests():
        form = common_pb2.AudioFormat(encoding=F32, sample_rate_hz=rate_hz, channels=samples.shape[1])
        yield watermark_pb2.DetectStreamRequest(start=watermark_pb2.DetectStart(format=form, **fields))
        for first in range(0, len(samples), size):
            data = samples[first : first + size].astype("<f4").tobytes()
            yield watermark_pb2.DetectStreamRequest(audio=watermark_pb2.DetectAudio(data=data))

    *progress, last = [response async for response in stub.DetectStream(requests(), timeout=60)]
    return [each.progress.searched.ToTimedelta().total_seconds() for each in progress], last.finished


async def test_a_long_stream_is_searched_by_pieces_and_each_channel_by_itself(service, monkeypatch):
    monkeypatch.setattr("services.watermark.detector.PIECE_S", 2.0)
    monkeypatch.setattr("services.watermark.detector._MIN_PIECE_S", 2.0)
    clip = speech_like(1.5, seed=5)
    _, data, _ = await embed(service, [start(), audio(clip)])
    stereo = np.stack([speech_like(6.0, seed=6), 0.3 * speech_like(6.0, seed=7)], axis=1)
    stereo[72000 : 72000 + len(clip), 1] = np.frombuffer(data, "<f4")
    progress, answer = await searched(service, stereo, 24000)
    assert len(progress) >= 2 and progress == sorted(progress) and progress[-1] < 6
    [mark] = answer.marks
    assert answer.found and answer.verdict == common_pb2.WATERMARK_VERDICT_FOUND and mark.channel == 1
    assert mark.start.ToTimedelta().total_seconds() == pytest.approx(3, abs=0.3)
    assert mark.end.ToTimedelta().total_seconds() == pytest.approx(4.5, abs=0.3)
    assert mark.speed == 1 and mark.confidence == answer.confidence >= answer.threshold == mark.threshold
    assert not answer.limited and answer.searched.ToTimedelta().total_seconds() == 6


async def test_a_limit_ends_the_search_and_the_answer_says_so(service, monkeypatch):
    monkeypatch.setattr("services.watermark.detector.PIECE_S", 3.0)
    monkeypatch.setattr("services.watermark.detector._MIN_PIECE_S", 3.0)
    limit = common_pb2.WatermarkSearch(time_limit=Duration(nanos=1))
    _, answer = await searched(service, speech_like(8.0, seed=6)[:, None], 24000, search=limit)
    assert answer.limited and not answer.found and answer.verdict == common_pb2.WATERMARK_VERDICT_LIMITED
    assert answer.searched.ToTimedelta().total_seconds() == 0


@pytest.mark.parametrize(
    ("samples", "verdict"),
    [(np.zeros(48000), "SILENT"), (speech_like(0.3, seed=6), "TOO_SHORT"), (speech_like(3.0, seed=6), "NOT_FOUND")],
)
async def test_a_verdict_says_why_nothing_is_found(service, samples, verdict):
    answer = await service.Detect(watermark_pb2.DetectRequest(audio=raw(samples)), timeout=60)
    assert common_pb2.WatermarkVerdict.Name(answer.verdict) == f"WATERMARK_VERDICT_{verdict}"
    assert not answer.found and answer.confidence < answer.threshold


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"rate_hz": 4000}, "start.format.sample_rate_hz"),
        ({"key": b"1234"}, "start.key"),
        ({"search": common_pb2.WatermarkSearch(time_limit=Duration())}, "start.search.time_limit"),
        ({"search": common_pb2.WatermarkSearch(time_limit=Duration(seconds=601))}, "start.search.time_limit"),
    ],
)
async def test_bad_streams_are_refused(service, fields, field):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await searched(service, np.zeros((0, 1)), 1, **fields)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT and field_of(caught.value) == field


async def test_a_caller_who_leaves_ends_the_search(pair_folder, monkeypatch):
    began, ended = threading.Event(), threading.Event()

    def search(self, samples, sample_rate_hz, key, stopped, **options):
        began.set()
        while not stopped():
            pass
        ended.set()
        raise InterruptedError

    monkeypatch.setattr("services.watermark.detector.Detector.detect", search)
    async with serving(pair_folder, detections=1) as stub:
        call = stub.Detect(watermark_pb2.DetectRequest(audio=raw(speech_like(0.5))), timeout=30)
        waiting = asyncio.ensure_future(call.wait_for_connection())
        assert await asyncio.to_thread(began.wait, 10)
        full = await refusal(stub.Detect(watermark_pb2.DetectRequest(audio=raw(speech_like(0.5))), timeout=10))
        assert full.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        call.cancel()
        assert await asyncio.to_thread(ended.wait, 10)
        await asyncio.gather(waiting, return_exceptions=True)


async def test_untrained_nets_say_not_found_with_their_confidence(tmp_path):
    folder = write_bundle(tmp_path / "bundle", "untrained", lambda place: write_random(place, TINY, seed=0))
    async with serving(folder) as stub:
        _, data, _ = await embed(stub, [start(), audio(speech_like(1.5))])
        answer = await stub.Detect(watermark_pb2.DetectRequest(audio=raw(np.frombuffer(data, "<f4"))), timeout=60)
        assert not answer.found and 0 < answer.confidence < answer.threshold


async def test_after_a_rotation_the_service_finds_what_it_marked_before(pair_folder):
    """The same speech, marked before and after: both are found, and each answer names its key."""
    samples = speech_like(2.0, seed=5)
    new = "7d10c4ae95"
    async with serving(pair_folder, key=f"2025-03={KEY.hex()}") as stub:
        started, before, _ = await embed(stub, [start(), audio(samples)])
        assert started.key_id == "2025-03"
    async with serving(pair_folder, key=f"2026-11={new}\n2025-03={KEY.hex()}") as stub:
        started, after, _ = await embed(stub, [start(), audio(samples)])
        assert started.key_id == "2026-11"
        for data, key_id, key in ((before, "2025-03", KEY), (after, "2026-11", bytes.fromhex(new))):
            clip = raw(np.frombuffer(data, "<f4"))
            answer = await stub.Detect(watermark_pb2.DetectRequest(audio=clip), timeout=60)
            assert (answer.found, answer.key_id, answer.decoded_key) == (True, key_id, key)
            assert {mark.key_id for mark in answer.marks} == {key_id}
            _, streamed = await searched(stub, np.frombuffer(data, "<f4")[:, None], 24000)
            assert (streamed.found, streamed.key_id) == (True, key_id)
            alone = await stub.Detect(watermark_pb2.DetectRequest(audio=clip, key=key), timeout=60)
            assert alone.found and alone.key_id == ""  # the caller brought the key
        clean = await stub.Detect(watermark_pb2.DetectRequest(audio=raw(samples)), timeout=60)
        assert not clean.found and clean.key_id == ""
    async with serving(pair_folder, key=new) as stub:  # the old key was taken out
        answer = await stub.Detect(watermark_pb2.DetectRequest(audio=raw(np.frombuffer(before, "<f4"))), timeout=60)
        assert not answer.found
