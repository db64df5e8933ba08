"""Streams of codec and watermark that start again on another replica: replayed equals undisturbed."""

from functools import partial

import numpy as np
import pytest
from csm.codec.v1 import codec_pb2
from google.protobuf.duration_pb2 import Duration

from services.engine.batcher import Batcher
from services.runtime.errors import is_status_lost
from support.codec_calls import SPF, frames_request, listen, one_shot, random_codes, serve
from support.watermark_calls import audio, field_of, refusal, serving, start
from support.watermark_pair import speech_like


@pytest.fixture
async def codec(bundle_folder):
    async with serve(bundle_folder) as served:
        yield served.codec


@pytest.fixture
async def watermark(pair_folder):
    async with serving(pair_folder) as stub:
        yield stub


def decode_requests(codes, size, **fields):
    yield codec_pb2.DecodeRequest(start=codec_pb2.DecodeStart(**fields))
    for first in range(0, len(codes), size):
        yield frames_request(codes[first : first + size])


@pytest.mark.parametrize(("discard", "size"), [(0, 4), (1, 1), (7, 5), (16, 16), (29, 8), (30, 8)])
async def test_audio_after_the_discarded_frames_is_that_of_the_undisturbed_stream(codec, mimi, discard, size):
    codes = random_codes(3, 30)
    requests = decode_requests(codes, size, discard_frames=discard)
    parts, finished = await listen(codec.Decode(requests, timeout=30))
    assert all(len(part) for part in parts)
    heard = np.concatenate([np.zeros(0, np.float32), *parts])
    np.testing.assert_allclose(heard, one_shot(mimi, codes)[discard * SPF :], atol=1e-5)
    assert (finished.frames, finished.samples) == (30, (30 - discard) * SPF)


async def test_a_decode_may_begin_with_the_history_of_its_audio(codec, mimi):
    codes = random_codes(3, 60)
    call = codec.Decode(decode_requests(codes[:1], 1), timeout=30)
    history = (await call.read()).started.history_frames
    call.cancel()
    assert 0 < history < 40
    parts, finished = await listen(
        codec.Decode(decode_requests(codes[50 - history :], 8, discard_frames=history), timeout=30)
    )
    np.testing.assert_allclose(np.concatenate(parts), one_shot(mimi, codes)[50 * SPF :], atol=1e-5)
    assert finished.frames == history + 10


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"discard_frames": 31}, "start.discard_frames"),
        ({"discard_frames": -1}, "start.discard_frames"),
        ({"buffered_duration": Duration(seconds=3601)}, "start.buffered_duration"),
        ({"buffered_duration": Duration(nanos=-1)}, "start.buffered_duration"),
    ],
)
async def test_a_decode_that_cannot_resume_is_refused(codec, fields, field):
    frames = random_codes(3, 30 if fields.get("discard_frames") == 31 else 0)
    error = await refusal(codec.Decode(decode_requests(frames, 30, **fields), timeout=30))
    assert field_of(error) == field


def embed_requests(samples, size, **fields):
    request = start()
    request.start.MergeFrom(type(request.start)(**fields))
    yield request
    for first in range(0, len(samples), size):
        yield audio(samples[first : first + size])


async def marked(stub, samples, size, **fields):
    responses = [each async for each in stub.Embed(embed_requests(samples, size, **fields), timeout=30)]
    assert all(len(each.audio.data) for each in responses[1:-1])
    return np.frombuffer(b"".join(each.audio.data for each in responses[1:-1]), "<f4"), responses[-1].finished


@pytest.mark.parametrize(("discard", "size"), [(1, 1920), (24000, 1920), (35999, 72000), (71999, 5000), (72000, 1920)])
async def test_marked_audio_after_the_discarded_samples_is_that_of_the_undisturbed_stream(watermark, discard, size):
    """The mark's phase and level included: they follow the whole stream."""
    clip = speech_like(3.0, seed=4)
    undisturbed, _ = await marked(watermark, clip, 1920)
    resumed, finished = await marked(watermark, clip, size, discard_samples=discard)
    assert len(resumed) == len(clip) - discard == finished.samples
    np.testing.assert_allclose(resumed, undisturbed[discard:], atol=1e-6)
    assert np.abs(undisturbed - clip).max() > 1e-3


async def test_an_embed_may_begin_at_a_checkpoint(watermark):
    clip = speech_like(6.0, seed=4)
    responses = [each async for each in watermark.Embed(embed_requests(clip, 1920), timeout=30)]
    undisturbed = np.frombuffer(b"".join(each.audio.data for each in responses), "<f4")
    checkpoints = [each.audio.checkpoint for each in responses if each.audio.HasField("checkpoint")]
    assert 4 <= len(checkpoints) <= 6  # one a second
    checkpoint = checkpoints[2]
    rest, discard = clip[checkpoint.first_sample :], checkpoint.first_marked_sample + 500
    assert len(rest) < 4 * 24_000
    call = watermark.Embed(embed_requests(rest, 1920, checkpoint=checkpoint, discard_samples=discard), timeout=30)
    responses = [each async for each in call]
    assert responses[0].started.first_sample == checkpoint.first_sample
    audio = np.frombuffer(b"".join(each.audio.data for each in responses), "<f4")
    assert len(audio) == responses[-1].finished.samples == len(clip) - discard
    np.testing.assert_allclose(audio, undisturbed[discard:], atol=1e-6)
    later = [each.audio.checkpoint for each in responses if each.audio.HasField("checkpoint")]
    assert later and later[0].first_sample > checkpoint.first_sample


@pytest.mark.parametrize(
    ("changes", "discard", "samples", "field"),
    [
        ({"first_sample": 7}, 10**6, 9000, "start.checkpoint"),
        ({"power_sum": float("nan")}, 10**6, 9000, "start.checkpoint"),
        ({}, 0, 9000, "start.discard_samples"),
        ({}, 10**6, 500, "start.checkpoint.first_marked_sample"),
        ({}, 10**6, 9000, "start.discard_samples"),
    ],
)
async def test_an_embed_that_no_checkpoint_can_resume_is_refused(watermark, changes, discard, samples, field):
    clip = speech_like(3.0, seed=4)
    responses = [each async for each in watermark.Embed(embed_requests(clip, 1920), timeout=30)]
    checkpoint = next(each.audio.checkpoint for each in responses if each.audio.HasField("checkpoint"))
    for name, value in changes.items():
        setattr(checkpoint, name, value)
    requests = partial(embed_requests, clip[:samples], 1920, checkpoint=checkpoint, discard_samples=discard)
    assert field_of(await refusal_that_is_heard(lambda: watermark.Embed(requests(), timeout=30))) == field


async def refusal_that_is_heard(call):
    """gRPC drops a refusal that our own next message meets."""
    while is_status_lost(error := await refusal(call())):
        pass
    return error


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"discard_samples": 24001}, "start.discard_samples"),
        ({"discard_samples": -1}, "start.discard_samples"),
        ({"buffered_duration": Duration(seconds=-1)}, "start.buffered_duration"),
    ],
)
async def test_an_embed_that_cannot_resume_is_refused(watermark, fields, field):
    clip = speech_like(1.0)[: 24000 if fields.get("discard_samples") == 24001 else 0]
    error = await refusal(watermark.Embed(embed_requests(clip, 24000, **fields), timeout=30))
    assert field_of(error) == field


async def test_a_replay_is_marked_behind_streams_that_are_due_earlier(watermark, monkeypatch):
    """Its first deadline is when the listener has played what it has; while it replays, now at the earliest."""
    asked, run = [], Batcher.run

    async def note(self, item, cost, deadline_s):
        asked.append(deadline_s)
        return await run(self, item, cost, deadline_s)

    monkeypatch.setattr(Batcher, "run", note)
    clip = speech_like(3.0)
    await marked(watermark, clip, 4800)
    requested_s = asked[0]
    del asked[:]
    await marked(watermark, clip, 4800, discard_samples=48000, buffered_duration=Duration(seconds=5))
    assert 5 <= asked[0] - requested_s < 15 and asked[8] == asked[0]  # 1.8 s of replay have moved nothing
    assert asked[-1] - asked[0] == pytest.approx(1.0, abs=0.1)  # audio that was sent has
    del asked[:]
    await marked(watermark, clip, 4800, discard_samples=72000)
    assert asked == sorted(asked) and asked[-1] > asked[0]  # late: in turn with others that are late
