"""The watermark service as a real server on a loopback port, with a pair of nets that works: streams it marks."""

import asyncio
import time
import weakref

import grpc
import numpy as np
import pytest
from csm.watermark.v1 import watermark_pb2
from google.rpc import error_details_pb2
from opentelemetry.trace import SpanKind

from models.files import PartError
from services.engine.batcher import Batcher
from services.runtime.errors import rich_details
from services.runtime.settings import SettingError
from services.watermark.embedder import Embedder
from services.watermark.key import PUBLIC_KEY
from services.watermark.level import RunningLevel
from services.watermark.marker import Marker
from services.watermark.stream import EmbedStream
from services.watermark.weights import load_nets
from support.watermark_calls import F32, KEY, audio, embed, field_of, raw, refusal, serving, start, write_bundle
from support.watermark_pair import TINY, speech_like, write_pair


@pytest.fixture
async def service(pair_folder):
    async with serving(pair_folder) as stub:
        yield stub


async def test_a_stream_is_due_when_its_listener_runs_dry(service, monkeypatch):
    asked, run = [], Batcher.run

    async def note(self, item, cost, deadline_s):
        asked.append((time.monotonic(), deadline_s))
        return await run(self, item, cost, deadline_s)

    monkeypatch.setattr(Batcher, "run", note)
    opened_s = time.monotonic()
    call = service.Embed(timeout=30)
    await call.write(start())
    assert (await call.read()).HasField("started")
    started_s, heard_s = time.monotonic(), 0.0
    for _ in range(4):
        await call.write(audio(speech_like(0.5)))
        heard_s += len((await call.read()).audio.data) / 4 / 24000
    await call.done_writing()
    while (response := await call.read()) is not grpc.aio.EOF and response.HasField("audio"):
        pass
    assert opened_s <= asked[0][1] <= started_s
    due = [deadline_s for _, deadline_s in asked]
    assert due == sorted(due) and len(set(due)) == 5  # four pieces and the end
    assert 1.5 < heard_s < 2 and asked[0][0] + heard_s < due[-1]  # it cannot have played before the first piece came
    assert due[1] - asked[1][0] < 0.5  # and plays what it was given since it was


async def test_the_span_tells_what_the_first_mark_waited_for_beside_the_look_ahead(service, spans):
    call = service.Embed(timeout=30)
    await call.write(start())
    ahead = (await call.read()).started.lookahead_samples
    clip = speech_like(ahead / 24000 + 1)
    await call.write(audio(clip[: ahead // 4]))  # nothing comes out for these
    completed_ns = time.time_ns()
    await call.write(audio(clip[ahead // 4 : ahead + 4096]))
    assert (await call.read()).HasField("audio")
    heard_ns = time.time_ns()
    await call.write(audio(clip[ahead + 4096 :]))
    await call.done_writing()
    while await call.read() is not grpc.aio.EOF:
        pass
    [mark] = [span for span in spans() if span.name == "first_mark"]
    [embed] = [span for span in spans() if span.name.endswith("/Embed") and span.kind is SpanKind.SERVER]
    assert mark.parent.span_id == embed.context.span_id
    assert completed_ns <= mark.start_time <= mark.end_time <= heard_ns


@pytest.mark.parametrize("frames", [[1], [7], [1, 1, 2, 4, 8], [40]], ids=str)
async def test_what_is_streamed_through_is_what_the_core_marks_and_detect_finds_it(service, pair_folder, frames):
    samples = speech_like(2.0, seed=4)
    pieces, place = [], 0
    while place < len(samples):
        count = 1920 * frames[len(pieces) % len(frames)]
        pieces.append(samples[place : place + count])
        place += count
    started, data, finished = await embed(service, [start(sample_rate_hz=24000), *map(audio, pieces)])
    paths = {role: pair_folder / "watermark" / name for role, name in
             {"hparams": "hparams.yaml", "enc_c": "enc_c.ckpt", "dec_c": "dec_c.ckpt", "dec_m": "dec_m_0.ckpt"}.items()}  # fmt: skip
    expected = Embedder(load_nets(paths), KEY, level=RunningLevel()).embed(samples)
    marked = np.frombuffer(data, "<f4")
    assert len(marked) == finished.samples == len(samples)
    assert np.abs(marked - expected).max() < 1e-6
    assert (started.format.encoding, started.format.sample_rate_hz, started.format.channels) == (
        F32,
        24000,
        1,
    )
    assert started.lookahead_samples == 2048 and finished.compute_duration.ToNanoseconds() > 0

    answer = await service.Detect(watermark_pb2.DetectRequest(audio=raw(marked[1000:])), timeout=60)
    assert answer.found and answer.confidence >= answer.threshold and answer.decoded_key == KEY
    begins = TINY.message_seconds - 1000 / 24000
    assert answer.position.ToNanoseconds() / 1e9 == pytest.approx(begins, abs=0.0015)


@pytest.mark.parametrize("seconds", [0.01, 0.08, 1.0])
async def test_what_nothing_can_come_out_for_takes_no_turn(pair_folder, monkeypatch, seconds):
    """As where passes are filled up: little is kept for the piece that follows, a whole clip marked all the same."""
    monkeypatch.setattr(Embedder, "first_samples", property(lambda embedder: embedder.receptive_field.first_samples))
    stock, pieces = Embedder.advance, []

    def counted(embedder, taken):
        pieces.extend((len(samples) if samples is not None else None, embedder.first_samples) for _, samples in taken)
        return stock(embedder, taken)

    monkeypatch.setattr(Embedder, "advance", counted)
    samples = speech_like(seconds, seed=6)
    async with serving(pair_folder) as service:
        few = [audio(samples[place : place + 100]) for place in range(0, len(samples), 100)]
        _, data, finished = await embed(service, [start(), *few])
        _, whole, _ = await embed(service, [start(), audio(samples)])
    assert finished.samples == len(samples)
    assert np.abs(np.frombuffer(data, "<f4") - np.frombuffer(whole, "<f4")).max() < 1e-6
    brought, first = pieces[0]
    assert first > 300  # of several messages
    assert brought == len(samples) if len(samples) < first else first <= brought < first + 100


async def test_an_opening_comes_back_with_its_last_sample(pair_folder):
    samples = speech_like(1.0, seed=6)
    async with serving(pair_folder, opening_ms=80) as service:
        info = await service.GetModelInfo(watermark_pb2.GetModelInfoRequest())
        assert info.opening_samples == 1920 < info.lookahead_samples
        call = service.Embed(timeout=30)
        await call.write(start())
        assert (await call.read()).HasField("started")
        await call.write(audio(samples[:1000]))
        await call.write(audio(samples[1000:1920]))
        assert len((await call.read()).audio.data) == 4 * (1920 - 240)
        call.cancel()
        _, data, finished = await embed(service, [start(), audio(samples)])
        assert finished.samples == len(samples)
    async with serving(pair_folder) as service:
        assert (await service.GetModelInfo(watermark_pb2.GetModelInfoRequest())).opening_samples == 0
        _, without, _ = await embed(service, [start(), audio(samples)])
    marked, plain = np.frombuffer(data, "<f4"), np.frombuffer(without, "<f4")
    assert np.abs(marked[1920:] - plain[1920:]).max() < 1e-6 < np.abs(marked[:1680] - plain[:1680]).max()


async def test_an_opening_longer_than_the_look_ahead_and_a_frame_is_refused(pair_folder):
    async with serving(pair_folder, opening_ms=80) as service:
        lookahead = (await service.GetModelInfo(watermark_pb2.GetModelInfoRequest())).lookahead_samples
    longest = (lookahead + 1920) // 24
    async with serving(pair_folder, opening_ms=longest) as service:
        assert (await service.GetModelInfo(watermark_pb2.GetModelInfoRequest())).opening_samples == 24 * longest
    with pytest.raises(SettingError, match=f"CSM_WATERMARK_OPENING_MS={longest + 1}: must be at most {longest} "):
        async with serving(pair_folder, opening_ms=longest + 1):
            pass


async def test_a_stream_of_nothing_gives_nothing(service):
    _, data, finished = await embed(service, [start(), audio(b"")])
    assert data == b"" and finished.samples == 0


async def test_streams_side_by_side_do_not_mix(service):
    clips = [speech_like(0.6, seed=seed) * (1 + seed) for seed in range(4)]

    async def through(clip):
        _, data, _ = await embed(service, [start(), *(audio(clip[i : i + 1920]) for i in range(0, len(clip), 1920))])
        return np.frombuffer(data, "<f4")

    together = await asyncio.gather(*map(through, clips))
    for clip, marked in zip(clips, together, strict=True):
        assert np.abs(marked - await through(clip)).max() < 1e-6


@pytest.mark.parametrize(
    ("requests", "field"),
    [
        ([], "event"),
        ([audio(b"")], "event"),
        ([start(), start()], "event"),
        ([start(0)], "start.format.encoding"),
        ([start(sample_rate_hz=0)], "start.format.sample_rate_hz"),
        ([start(sample_rate_hz=44100)], "start.format.sample_rate_hz"),
        ([start(channels=2)], "start.format.channels"),
        ([start(), audio(b"123")], "audio.data"),
        ([start(), audio(np.full(9, np.nan, "<f4"))], "audio.data"),
        ([start(), audio(np.full(9, 30000, "<f4"))], "audio.data"),
    ],
)  # fmt: skip
async def test_bad_streams_are_refused_and_the_server_goes_on(service, requests, field):
    error = await refusal(service.Embed(iter(requests), timeout=10))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT and field_of(error) == field
    _, data, _ = await embed(service, [start(), audio(speech_like(0.1))])
    assert len(data) == 4 * 2400


async def test_a_full_service_refuses_before_the_first_message_and_takes_over_freed_places(pair_folder):
    async with serving(pair_folder, streams=1) as stub:
        holder = stub.Embed(timeout=30)
        await holder.write(start())
        assert (await holder.read()).WhichOneof("event") == "started"
        error = await refusal(stub.Embed(iter([start()]), timeout=10))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert any(isinstance(detail, error_details_pb2.RetryInfo) for detail in rich_details(error))
        await stub.GetModelInfo(watermark_pb2.GetModelInfoRequest(), timeout=5)
        holder.cancel()
        async with asyncio.timeout(10):
            while True:
                call = stub.Embed(iter([start()]), timeout=10)
                try:
                    kinds = [response.WhichOneof("event") async for response in call]
                    break
                except grpc.aio.AioRpcError as refused:
                    assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert kinds == ["started", "finished"]


async def test_a_caller_who_waits_keeps_nothing_of_the_passes_it_was_in(service, monkeypatch):
    """What is marked lies in memory that all streams of a pass share."""
    take, given = EmbedStream.take_marked, []

    def note(self):
        marked = take(self)
        given.extend([weakref.ref(marked)] if len(marked) else [])
        return marked

    monkeypatch.setattr(EmbedStream, "take_marked", note)
    call = service.Embed(timeout=30)
    await call.write(start())
    assert (await call.read()).HasField("started")
    for _ in range(3):
        await call.write(audio(speech_like(0.5)))
        assert (await call.read()).HasField("audio")
    assert len(given) == 3
    limit_s = time.monotonic() + 10
    while any(result() is not None for result in given) and time.monotonic() < limit_s:
        await asyncio.sleep(0.01)
    assert [result() for result in given] == [None] * 3
    call.cancel()


async def test_an_embedder_that_fails_gives_no_audio(service, monkeypatch):
    def fail(self, *arguments):
        raise RuntimeError("device lost")

    monkeypatch.setattr(Marker, "step", fail)
    error = await refusal(service.Embed(iter([start(), audio(speech_like(0.5))]), timeout=10))
    assert error.code() is grpc.StatusCode.INTERNAL


async def test_an_embedder_that_loses_samples_is_an_error(service, monkeypatch):
    monkeypatch.setattr(EmbedStream, "take_marked", lambda self: np.zeros(0, np.float32))
    call = service.Embed(iter([start(), audio(speech_like(0.5))]), timeout=10)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for response in call:
            assert response.WhichOneof("event") != "finished"
    assert caught.value.code() is grpc.StatusCode.INTERNAL


async def test_model_info(service):
    info = await service.GetModelInfo(watermark_pb2.GetModelInfoRequest(), timeout=5)
    assert (info.bundle.bundle_id, info.bundle.sample_rate_hz, info.trained) == ("working-pair", 24000, True)
    assert info.lookahead_samples == 2048 and info.max_detect_duration.seconds == 5


async def test_nothing_is_served_without_a_key_or_with_the_public_one(pair_folder):
    for key in (None, PUBLIC_KEY.hex(), "1234"):
        with pytest.raises(SettingError, match="CSM_WATERMARK_KEY"):
            async with serving(pair_folder, key=key):
                pass


async def test_missing_files_are_one_line_at_start(tmp_path):
    folder = write_bundle(tmp_path / "bundle", "other", lambda place: write_pair(place, TINY))
    (folder / "watermark" / "dec_m_0.ckpt").unlink()
    with pytest.raises(PartError, match=r"watermark: .*dec_m_0\.ckpt: no such file"):
        async with serving(folder):
            pass
