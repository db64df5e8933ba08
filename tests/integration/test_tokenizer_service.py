"""The tokenizer service on a loopback port, with a tiny Mimi, called as the gateway calls it."""

import asyncio
import threading
from contextlib import asynccontextmanager

import grpc
import numpy as np
import pytest
import soxr
import tiny_mimi
import torch
from csm.common.v1 import common_pb2
from csm.tokenizer.v1 import tokenizer_pb2, tokenizer_pb2_grpc
from google.rpc import error_details_pb2
from transformers import PreTrainedTokenizerFast

from models.bundle import load_bundle
from models.mimi import load_mimi
from services.runtime.audio import wav_bytes
from services.runtime.batches import Batches
from services.runtime.errors import rich_details
from services.runtime.server import StageServer
from services.runtime.settings import StartError, read
from services.tokenizer.__main__ import open_stage
from services.tokenizer.config import TokenizerSettings
from services.tokenizer.encoder import ClipEncoder

S16, F32 = common_pb2.AUDIO_ENCODING_PCM_S16LE, common_pb2.AUDIO_ENCODING_PCM_F32LE


@pytest.fixture(scope="module")
def bundle_folder(tmp_path_factory):
    return tiny_mimi.write_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def mimi(bundle_folder):
    return load_mimi(load_bundle(str(bundle_folder)))


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


@pytest.fixture
async def tokenizer(bundle_folder):
    async with serve(bundle_folder, max_audio_s=3.0, max_segments=4) as stub:
        yield stub


def tone(rate_hz, seconds=0.5, hz=300.0):
    return (0.4 * np.sin(2 * np.pi * hz * np.arange(int(rate_hz * seconds)) / rate_hz)).astype(np.float32)


def raw(samples, rate_hz, encoding=F32, channels=1):
    data = samples if isinstance(samples, bytes) else samples.astype("<f4").tobytes()
    form = common_pb2.AudioFormat(encoding=encoding, sample_rate_hz=rate_hz, channels=channels)
    return tokenizer_pb2.EncodeAudioRequest(
        audio=common_pb2.AudioClip(raw=common_pb2.RawAudio(format=form, data=data))
    )


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


async def refusal(awaitable, code=grpc.StatusCode.INVALID_ARGUMENT):
    """(field, description) of a refused call."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await awaitable
    assert caught.value.code() is code, caught.value.details()
    (bad,) = [d for d in rich_details(caught.value) if isinstance(d, error_details_pb2.BadRequest)]
    return bad.field_violations[0].field, bad.field_violations[0].description


async def test_segments_come_back_in_order_in_the_template(tokenizer, bundle_folder):
    stock = PreTrainedTokenizerFast(tokenizer_file=str(bundle_folder / "tokenizer.json"))
    response = await tokenizer.Tokenize(
        segments((0, "Hello there."), (1, "<|end_of_text|> Grüße")), timeout=10
    )
    first, second = (list(segment.ids) for segment in response.segments)
    bos, eos = stock.convert_tokens_to_ids(["<|begin_of_text|>", "<|end_of_text|>"])
    assert first == [bos, *stock.encode("[0]Hello there.", add_special_tokens=False), eos]
    assert second[0] == bos and second.count(eos) == 1 and second[-1] == eos
    assert stock.decode(second[1:-1]) == "[1]<|end_of_text|> Grüße"


async def test_the_speaker_is_0_when_absent(tokenizer):
    absent = tokenizer_pb2.TokenizeRequest(segments=[tokenizer_pb2.TextSegment(text="hi")])
    assert await tokenizer.Tokenize(absent) == await tokenizer.Tokenize(segments((0, "hi")))


@pytest.mark.parametrize(
    "pairs, field, words",
    [
        ([], "segments", "1 to 4 segments, not 0"),
        ([(0, "x")] * 5, "segments", "1 to 4 segments, not 5"),
        ([(0, "fine"), (0, "")], "segments[1].text", "at least one character"),
        ([(0, " \n ")], "segments[0].text", "at least one character"),
        ([(0, "x" * 2**20)], "segments[0].text", "1048576 characters, at most 4096"),
        ([(0, "a\0b")], "segments[0].text", "U+0000"),
        ([(0, "fine"), (-1, "hi")], "segments[1].speaker", "0 or greater, not -1"),
    ],
)
async def test_bad_segments_are_refused_and_the_server_goes_on(tokenizer, pairs, field, words):
    told, description = await refusal(tokenizer.Tokenize(segments(*pairs), timeout=10))
    assert told == field
    assert words in description
    assert (await tokenizer.Tokenize(segments((0, "hi")), timeout=10)).segments


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 22_050, 24_000, 44_100, 48_000])
@pytest.mark.parametrize("channels", [1, 2])
async def test_clips_at_any_rate_become_mimis_codes(tokenizer, mimi, rate_hz, channels):
    left = tone(rate_hz)
    mono = left if channels == 1 else (left + tone(rate_hz, hz=700)) / 2
    sent = left if channels == 1 else np.stack([left, tone(rate_hz, hz=700)], axis=1)
    response = await tokenizer.EncodeAudio(raw(sent, rate_hz, channels=channels), timeout=30)
    np.testing.assert_array_equal(codes_of(response), expected(mimi, mono, rate_hz))
    assert response.audio_duration.ToNanoseconds() == pytest.approx(0.5e9)
    assert response.compute_duration.ToNanoseconds() > 0
    assert not response.cached


async def test_int16_and_wav(tokenizer, mimi):
    samples = np.rint(tone(16_000) * 32768) / np.float32(32768)
    want = expected(mimi, samples, 16_000)
    ints = (samples * 32768).astype("<i2").tobytes()
    for request in (
        raw(ints, 16_000, S16),
        wav(wav_bytes(samples, 16_000)),
        wav(wav_bytes(samples, 16_000, "f32le")),
    ):
        np.testing.assert_array_equal(codes_of(await tokenizer.EncodeAudio(request, timeout=30)), want)


async def test_the_same_content_is_encoded_once(tokenizer):
    samples = np.rint(tone(24_000, hz=431) * 32768) / np.float32(32768)
    first = await tokenizer.EncodeAudio(raw(samples, 24_000), timeout=30)
    again = await tokenizer.EncodeAudio(wav(wav_bytes(samples, 24_000)), timeout=30)
    assert (first.cached, again.cached) == (False, True)
    assert first.frames == again.frames
    assert again.compute_duration.ToNanoseconds() == 0


FLOATS = tone(24_000)


@pytest.mark.parametrize(
    "request_, field, words",
    [
        (tokenizer_pb2.EncodeAudioRequest(), "audio.source", "wav or raw"),
        (raw(b"", 24_000), "audio.raw.data", "no samples"),
        (raw(FLOATS, 0), "audio.raw.format.sample_rate_hz", "8000 to 48000 Hz, not 0 Hz"),
        (raw(FLOATS, 96_000), "audio.raw.format.sample_rate_hz", "8000 to 48000 Hz"),
        (raw(FLOATS, 24_000, channels=3), "audio.raw.format.channels", "1 or 2 channels, not 3"),
        (raw(FLOATS, 24_000, channels=0), "audio.raw.format.channels", "1 or 2 channels, not 0"),
        (raw(FLOATS, 24_000, encoding=0), "audio.raw.format.encoding", "PCM_S16LE or PCM_F32LE"),
        (raw(FLOATS, 24_000, encoding=77), "audio.raw.format.encoding", "PCM_S16LE or PCM_F32LE"),
        (raw(np.float32([0, np.nan]), 24_000), "audio.raw.data", "NaN"),
        (raw(np.float32([np.inf, 0]), 24_000), "audio.raw.data", "infinite"),
        (raw(tone(24_000, seconds=3.1), 24_000), "audio.raw.data", "at most 3 s"),
        (wav(b"no wav"), "audio.wav", "not a WAV file"),
        (wav(wav_bytes(FLOATS, 24_000)[:-10]), "audio.wav", "truncated"),
        (wav(wav_bytes(FLOATS[:0], 24_000)), "audio.wav", "no samples"),
    ],
)
async def test_bad_clips_are_refused_and_the_server_goes_on(tokenizer, request_, field, words):
    told, description = await refusal(tokenizer.EncodeAudio(request_, timeout=10))
    assert told == field
    assert words in description
    assert (await tokenizer.EncodeAudio(raw(FLOATS, 24_000), timeout=10)).frames


class Gate:
    """Holds passes of ClipEncoder back until it is opened; tells what waits for one and what passes there were."""

    def __init__(self, monkeypatch):
        self.open, self.entered, self.passes = threading.Event(), threading.Event(), []
        self.batches, self.handed = None, 0  # clips
        stock, run = ClipEncoder._pass, Batches.run

        def held(encoder, clips):
            self.passes.append([len(clip) for clip in clips])
            self.entered.set()
            assert self.open.wait(30)
            return stock(encoder, clips)

        def counted(batches, piece, load):
            self.batches, self.handed = batches, self.handed + 1
            return run(batches, piece, load)

        monkeypatch.setattr(ClipEncoder, "_pass", held)
        monkeypatch.setattr(Batches, "run", counted)

    async def hold(self, count):
        """Wait until `count` clips have come as far as to wait for their pass."""
        async with asyncio.timeout(20):
            while self.handed < count:
                await asyncio.sleep(0.005)


async def test_clips_that_wait_share_passes_with_their_like(bundle_folder, mimi, monkeypatch, spans, metrics):
    seconds = (0.3, 0.5, 1.9, 0.6, 0.45, 2.0, 0.55)
    async with serve(bundle_folder, batch=3) as tokenizer:
        gate, calls = Gate(monkeypatch), []
        for index, length in enumerate(seconds):  # one after the other, so that it is known who is the oldest
            calls.append(tokenizer.EncodeAudio(raw(tone(24_000, length, 200 + index), 24_000), timeout=60))
            await gate.hold(index + 1)
        gate.open.set()
        responses = await asyncio.gather(*calls)
    in_seconds = [[length / 24_000 for length in lengths] for lengths in gate.passes]
    assert in_seconds == [[0.3], [0.5, 0.55, 0.45], [1.9, 2.0], [0.6]]
    for index, (length, response) in enumerate(zip(seconds, responses, strict=True)):
        np.testing.assert_array_equal(codes_of(response), expected(mimi, tone(24_000, length, 200 + index), 24_000))
    sizes = [span.attributes["csm.batch_size"] for span in spans() if span.name.endswith("/EncodeAudio")]
    assert sorted(sizes) == [1, 1, 2, 2, 3, 3, 3]
    measured = metrics()
    for name in ("csm.stage.queue.duration", "csm.stage.chunk.duration"):
        (point,) = [point for point in measured[name] if point.attributes["rpc.method"] == "EncodeAudio"]
        assert point.count == len(seconds)


async def test_a_pass_is_no_longer_than_set(bundle_folder, monkeypatch):
    async with serve(bundle_folder, batch=8, batch_audio_s=1.0) as tokenizer:
        gate, calls = Gate(monkeypatch), []
        for index, length in enumerate((0.3, 0.5, 0.5, 0.5, 0.6, 1.2)):
            calls.append(tokenizer.EncodeAudio(raw(tone(24_000, length, 200 + index), 24_000), timeout=60))
            await gate.hold(index + 1)
        gate.open.set()
        assert all(response.frames for response in await asyncio.gather(*calls))
    assert [len(lengths) for lengths in gate.passes] == [1, 2, 1, 1, 1]


async def test_a_clip_whose_caller_left_is_passed_over_and_its_neighbours_are_not(bundle_folder, mimi, monkeypatch):
    async with serve(bundle_folder, batch=8) as tokenizer:
        gate, calls = Gate(monkeypatch), []
        for index in range(4):
            calls.append(tokenizer.EncodeAudio(raw(tone(24_000, 0.4, 300 + index), 24_000), timeout=60))
            await gate.hold(index + 1)
        calls[1].cancel()
        async with asyncio.timeout(20):
            while len(gate.batches._waiting) > 2:
                await asyncio.sleep(0.005)
        gate.open.set()
        responses = await asyncio.gather(calls[0], *calls[2:])
    assert [len(lengths) for lengths in gate.passes] == [1, 2]
    for hz, response in zip((300, 302, 303), responses, strict=True):
        np.testing.assert_array_equal(codes_of(response), expected(mimi, tone(24_000, 0.4, hz), 24_000))


async def test_too_many_encodings_are_refused_with_a_time_to_retry(bundle_folder, monkeypatch):
    async with serve(bundle_folder, max_encodings=2) as tokenizer:
        gate = Gate(monkeypatch)
        running = [tokenizer.EncodeAudio(raw(tone(24_000, hz=200 + i), 24_000), timeout=30) for i in range(2)]
        try:
            assert await asyncio.to_thread(gate.entered.wait, 30)
            refused = None
            while refused is None:  # the second may not have arrived yet; then this one takes its place
                probe = tokenizer.EncodeAudio(raw(tone(24_000, hz=999), 24_000), timeout=1)
                try:
                    await probe
                except grpc.aio.AioRpcError as error:
                    if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                        refused = error
            assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            (retry,) = [d for d in rich_details(refused) if isinstance(d, error_details_pb2.RetryInfo)]
            assert retry.retry_delay.ToNanoseconds() > 0
            # Text is served all the while.
            assert (await tokenizer.Tokenize(segments((0, "hi")), timeout=10)).segments
        finally:
            gate.open.set()
        for call in running:
            assert (await call).frames


async def test_a_cancelled_caller_gives_its_place_back(bundle_folder, monkeypatch):
    async with serve(bundle_folder, max_encodings=1) as tokenizer:
        gate = Gate(monkeypatch)
        call = tokenizer.EncodeAudio(raw(tone(24_000, hz=250), 24_000), timeout=30)
        try:
            await asyncio.gather(asyncio.to_thread(gate.entered.wait, 30), asyncio.sleep(0))
            call.cancel()
            # The thread is still held, the place is free: a next caller is let in and waits.
            async with asyncio.timeout(20):
                while True:
                    try:
                        await tokenizer.EncodeAudio(raw(FLOATS, 24_000), timeout=0.2)
                    except grpc.aio.AioRpcError as error:
                        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                            break
        finally:
            gate.open.set()
        async with asyncio.timeout(20):
            while True:
                try:
                    assert (await tokenizer.EncodeAudio(raw(FLOATS, 24_000), timeout=10)).frames
                    break
                except grpc.aio.AioRpcError as error:
                    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_info(tokenizer):
    info = await tokenizer.GetModelInfo(tokenizer_pb2.GetModelInfoRequest(), timeout=10)
    assert (info.bundle.bundle_id, info.bundle.codebooks, info.bundle.sample_rate_hz) == ("tiny", 4, 24_000)
    assert info.max_text_chars == 4096
    assert info.max_audio_duration.ToNanoseconds() == 3_000_000_000


async def test_a_damaged_tokenizer_is_a_start_error(bundle_folder, tmp_path):
    for path in bundle_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(StartError, match=r"text_tokenizer: .*not a tokenizer\.json"):
        async with serve(tmp_path):
            pass
