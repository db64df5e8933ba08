"""The codec service on a loopback port, with a tiny Mimi, called as the gateway calls it."""

import asyncio

import grpc
import numpy as np
import pytest
from csm.codec.v1 import codec_pb2
from csm.common.v1 import common_pb2
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2

from models.files import PartError
from services.codec.decoder import SlotDecoder
from services.runtime.errors import rich_details
from services.runtime.version import version
from support.codec_calls import (
    SLOTS,
    SPF,
    START,
    frames_request,
    listen,
    one_shot,
    random_codes,
    requests,
    samples,
    serve,
)


@pytest.fixture
async def served(bundle_folder):
    async with serve(bundle_folder) as served:
        yield served


@pytest.mark.parametrize("sizes", [[1] * 20, [2] * 10, [3] * 6 + [2], [7, 7, 6], [1, 1, 2, 4, 8, 4], [20]])
async def test_streamed_is_one_shot(served, mimi, sizes):
    codes = random_codes(1, 20)
    parts, finished = await listen(served.codec.Decode(requests(codes, sizes), timeout=30))
    assert [len(part) for part in parts] == [size * SPF for size in sizes]
    np.testing.assert_allclose(np.concatenate(parts), one_shot(mimi, codes), atol=1e-5)
    assert (finished.frames, finished.samples) == (20, 20 * SPF)
    assert finished.compute_duration.ToNanoseconds() > 0


async def test_streams_side_by_side_do_not_touch_each_other(served, mimi):
    places = asyncio.Semaphore(SLOTS)

    async def speak(seed):
        codes = random_codes(seed, 5 + 3 * seed)
        async with places:
            call = await served.begin()
            heard = []
            for start in range(0, len(codes), 1 + seed % 4):
                await call.write(frames_request(codes[start : start + 1 + seed % 4]))
                heard.append(samples((await call.read()).audio.data))
            await call.done_writing()
            assert (await call.read()).finished.frames == len(codes)
            assert await call.read() is grpc.aio.EOF
        np.testing.assert_allclose(np.concatenate(heard), one_shot(mimi, codes), atol=1e-5)

    await asyncio.gather(*map(speak, range(9)))
    await served.until_active(0)


async def test_an_utterance_without_frames_is_empty(served):
    parts, finished = await listen(served.codec.Decode(requests(random_codes(0, 0), []), timeout=30))
    assert parts == []
    assert (finished.frames, finished.samples) == (0, 0)


async def test_format_and_info(served):
    call = served.codec.Decode(timeout=30)
    await call.write(START)
    form = (await call.read()).started.format
    assert (form.encoding, form.sample_rate_hz, form.channels) == (
        common_pb2.AUDIO_ENCODING_PCM_F32LE,
        24_000,
        1,
    )
    info = await served.info()
    assert (info.bundle.bundle_id, info.bundle.codebooks, info.bundle.frame_rate_hz) == ("tiny", 4, 12.5)
    assert (info.samples_per_frame, info.slots_capacity, info.slots_active, info.version) == (SPF, SLOTS, 1, version())
    call.cancel()
    await served.until_active(0)


async def test_no_free_slot_is_said_before_the_first_message(served):
    calls = [await served.begin() for _ in range(SLOTS)]
    refused = served.codec.Decode(timeout=30)
    await refused.write(START)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await refused.read()
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert f"all {SLOTS} permits are in use" in caught.value.details()
    (retry,) = [d for d in rich_details(caught.value) if isinstance(d, error_details_pb2.RetryInfo)]
    assert retry.retry_delay.ToNanoseconds() > 0
    calls.pop().cancel()
    await served.until_active(SLOTS - 1)
    calls.append(await served.begin())
    for call in calls:
        call.cancel()


async def test_streams_that_say_nothing_take_no_slot_and_are_bounded(served):
    limit = 2 * SLOTS + 64
    silent = [served.codec.Decode(timeout=60) for _ in range(limit)]
    try:
        async with asyncio.timeout(20):
            while True:  # the last of them has to arrive before the next is one too many
                one_more = served.codec.Decode(timeout=60)
                reading = asyncio.ensure_future(one_more.read())
                done, _ = await asyncio.wait({reading}, timeout=0.5)
                if done:
                    break
                silent.append(one_more)
        assert await one_more.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "without a first message" in await one_more.details()
        with pytest.raises(grpc.aio.AioRpcError):
            await reading
    finally:
        for call in silent:
            call.cancel()
    async with asyncio.timeout(20):
        while True:  # until the server has heard of the cancels
            try:
                (await served.begin()).cancel()
                break
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("when", ["idle", "after reading", "with audio unread"])
async def test_cancel_frees_the_slot(served, when):
    call = await served.begin()
    if when != "idle":
        await call.write(frames_request(random_codes(2, 8)))
        await call.read()
    if when == "with audio unread":
        for seed in range(2):
            await call.write(frames_request(random_codes(seed, 64)))
    assert (await served.info()).slots_active == 1
    call.cancel()
    await served.until_active(0)


async def test_a_deadline_frees_the_slot(served):
    call = await served.begin(timeout=1.0)
    await call.write(frames_request(random_codes(2, 4)))
    await call.read()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await served.until_active(0)


async def test_a_reader_who_stops_stalls_only_itself(served, mimi):
    """It is fed until the server takes no more, which must come; meanwhile others are served."""
    slow = await served.begin()
    fed = 0

    async def feed():
        nonlocal fed
        for i in range(500):  # 32,000 frames, 245 MB of audio
            await slow.write(frames_request(random_codes(i, 64)))
            fed += 64

    feeder = asyncio.create_task(feed())
    codes = random_codes(3, 30)
    for _ in range(5):
        parts, _ = await listen(served.codec.Decode(requests(codes, [10, 10, 10]), timeout=30))
        np.testing.assert_allclose(np.concatenate(parts), one_shot(mimi, codes), atol=1e-5)
    still = 0
    async with asyncio.timeout(30):
        while still < 100:  # questions in a row during which nothing more was taken
            before = fed
            await served.info()
            still = still + 1 if fed == before else 0
    assert 128 <= fed < 16_000  # most of it requests on their way: a few bytes a frame
    assert not feeder.done()
    slow.cancel()
    await asyncio.gather(feeder, return_exceptions=True)
    await served.until_active(0)


@pytest.mark.parametrize(
    "messages, field, words",
    [
        ([], "event", "first message must be start"),
        ([codec_pb2.DecodeRequest()], "event", "first message must be start"),
        ([frames_request([[0, 0, 0, 0]])], "event", "first message must be start"),
        ([START, START], "event", "every message after start must be frames"),
        ([START, codec_pb2.DecodeRequest()], "event", "every message after start must be frames"),
        ([START, frames_request([])], "frames.frames", "1 to 64 frames, not 0"),
        ([START, frames_request([[0] * 4] * 65)], "frames.frames", "1 to 64 frames, not 65"),
        ([START, frames_request([[0] * 4, [0] * 3])], "frames.frames[1].codes", "4 codes, not 3"),
        ([START, frames_request([[0] * 32])], "frames.frames[0].codes", "4 codes, not 32"),
        ([START, frames_request([[0, 0, 32, 0]])], "frames.frames[0].codes[2]", "below 32, not 32"),
        (
            [START, frames_request([[0] * 4]), frames_request([[0, 0, 0, 2**32 - 1]])],
            "frames.frames[0].codes[3]",
            "below 32",
        ),
    ],
)
async def test_bad_messages_are_refused_with_field_and_limit(served, messages, field, words):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in served.codec.Decode(iter(messages), timeout=30):
            pass
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    (bad,) = [d for d in rich_details(caught.value) if isinstance(d, error_details_pb2.BadRequest)]
    assert bad.field_violations[0].field == field
    assert words in bad.field_violations[0].description
    await served.until_active(0)
    assert (await listen(served.codec.Decode(requests(random_codes(0, 2), [2]), timeout=30)))[1].frames == 2


async def test_a_worker_that_dies_ends_streams_and_liveness(bundle_folder, monkeypatch):
    async with serve(bundle_folder) as served:
        call = await served.begin()

        def broken(self, batch):
            raise RuntimeError("device lost")

        monkeypatch.setattr(SlotDecoder, "begin", broken)
        await call.write(frames_request(random_codes(0, 1)))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "device lost" in caught.value.details()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await served.begin()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        async with asyncio.timeout(20):
            request = health_pb2.HealthCheckRequest(service="liveness")
            while (await served.health.Check(request)).status != health_pb2.HealthCheckResponse.NOT_SERVING:
                await asyncio.sleep(0.01)


async def test_the_span_tells_the_first_frame(served, spans):
    await listen(served.codec.Decode(requests(random_codes(0, 3), [1, 2]), timeout=30))
    (span,) = [span for span in spans() if span.name == "csm.codec.v1.CodecService/Decode"]
    assert [event.name for event in span.events] == ["first_frame"]
    assert span.attributes["csm.frames"] == 3


async def test_missing_weights_are_a_start_error(bundle_folder, tmp_path):
    (tmp_path / "bundle.toml").write_text((bundle_folder / "bundle.toml").read_text())
    with pytest.raises(PartError, match=r"mimi: .*no such file"):
        async with serve(tmp_path):
            pass
