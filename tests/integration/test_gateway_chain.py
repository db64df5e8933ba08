"""The chain as its caller sees it, over fake stages: audio, order, overlap, output formats, verification."""

import asyncio
import gc
import io
import re
import wave

import grpc
import numpy as np
import pytest
from csm.common.v1 import common_pb2
from csm.speech.v1 import speech_pb2

from gateway.chain import SpeechChain
from gateway.speech.ending import EndingRules
from gateway.speech.turn import Turn
from services.runtime import wav
from support.fake_stages import LOOKAHEAD, MARK, SAMPLES_PER_FRAME

F32 = common_pb2.AUDIO_ENCODING_PCM_F32LE


def request(text="hello", **fields):
    output = fields.pop("output", speech_pb2.OutputOptions(encoding=F32))
    return speech_pb2.StreamSynthesizeRequest(utterance=speech_pb2.Utterance(text=text, **fields), output=output)


async def listen(call):
    """(started, audio bytes, finished)"""
    started = finished = None
    audio = b""
    async for response in call:
        match response.WhichOneof("event"):
            case "started":
                assert started is None and not audio
                started = response.started
            case "audio":
                assert started is not None and finished is None
                audio += response.audio.data
            case "finished":
                finished = response.finished.summary
    return started, audio, finished


def expected(frames):
    return np.repeat(np.arange(frames, dtype=np.float32) / 1024, SAMPLES_PER_FRAME) + np.float32(MARK)


async def test_every_sample_arrives_in_order_and_marked(open_chain, probe):
    chain = await open_chain()
    probe.frames = 37
    started, audio, summary = await listen(chain.speech.StreamSynthesize(request(), timeout=10))
    np.testing.assert_array_equal(np.frombuffer(audio, "<f4"), expected(37))
    assert started.format.sample_rate_hz == 24000 and started.seed == 77
    assert summary.frames == 37 and summary.samples == 37 * SAMPLES_PER_FRAME
    assert summary.finish_reason == common_pb2.FINISH_REASON_END_OF_SPEECH
    assert [stage.stage for stage in summary.stages] == ["tokenizer", "backbone", "codec", "watermark"]
    assert 0 < summary.time_to_first_audio.ToNanoseconds() <= summary.real_time_factor * 37 * 0.08 * 1e9


def kept():
    return [each for each in gc.get_objects() if type(each) in (SpeechChain, Turn)]


@pytest.fixture
async def uncollected(open_chain, probe):
    """A chain that has spoken once, and no garbage collection from then on."""
    chain = await open_chain()
    probe.frames = 37
    await listen(chain.speech.StreamSynthesize(request(), timeout=10))
    gc.collect()
    gc.disable()
    yield chain
    gc.enable()


async def test_an_utterance_leaves_nothing_for_the_garbage_collector(uncollected):
    """What refers to itself stays until a full collection, which stops every stream of the process."""
    for _ in range(3):
        await listen(uncollected.speech.StreamSynthesize(request(), timeout=10))
    assert not kept()


async def test_an_utterance_whose_caller_leaves_does_not_either(uncollected):
    """An error's frames hold the tasks that they name, and a task holds its error."""
    for _ in range(3):
        call = uncollected.speech.StreamSynthesize(request(), timeout=10)
        await anext(aiter(call))
        call.cancel()
    async with asyncio.timeout(10):
        while kept():
            await asyncio.sleep(0.05)


async def test_stages_overlap(open_chain, probe):
    """Audio of frame 0 is out while the backbone has not made frame 2."""
    chain = await open_chain()
    probe.gate = 2
    call = chain.speech.StreamSynthesize(request(), timeout=10)
    assert (await call.read()).HasField("started")
    assert (await call.read()).HasField("audio")
    assert probe.generated == 2
    probe.gate = None
    probe.touch()
    audio, summary = await listen_rest(call)
    assert summary.frames == probe.frames
    assert len(audio) == (probe.frames - 1) * SAMPLES_PER_FRAME * 4 + LOOKAHEAD * 4


async def test_an_opening_is_heard_with_the_frame_that_completes_it(open_chain, probe):
    probe.opening_samples = SAMPLES_PER_FRAME
    chain = await open_chain()
    probe.gate = 1
    call = chain.speech.StreamSynthesize(request(), timeout=10)
    assert (await call.read()).HasField("started")
    audio = (await call.read()).audio.data
    assert probe.generated == 1 and len(audio) == 4 * SAMPLES_PER_FRAME  # otherwise the look-ahead would be missing
    policy = probe.requests[0].chunk_policy
    assert (policy.opening_frames, policy.held_back_frames) == (1, 0)
    assert policy.listener_buffer.ToMilliseconds() == 200  # CSM_LISTENER_BUFFER_MS
    probe.gate = None
    probe.touch()
    rest, summary = await listen_rest(call)
    np.testing.assert_array_equal(np.frombuffer(audio + rest, "<f4"), expected(probe.frames))
    assert summary.samples == probe.frames * SAMPLES_PER_FRAME


async def listen_rest(call):
    audio, summary = b"", None
    while summary is None:
        response = await call.read()
        audio += response.audio.data
        if response.HasField("finished"):
            summary = response.finished.summary
    return audio, summary


async def test_prompt_is_context_then_text(open_chain, probe):
    chain = await open_chain()
    turns = [
        speech_pb2.ContextSegment(speaker=1, text="hi", audio=common_pb2.AudioClip(wav=b"RIFF")),
        speech_pb2.ContextSegment(text="yo", audio=common_pb2.AudioClip(wav=b"RIFF")),
    ]
    _, _, summary = await listen(chain.speech.StreamSynthesize(request("go", speaker=2, context=turns), timeout=10))
    parts = probe.requests[0].prompt
    assert [part.WhichOneof("part") for part in parts] == ["text", "audio", "text", "audio", "text"]
    assert list(parts[0].text.ids) == [1, 11, *b"hi", 2]
    assert list(parts[2].text.ids) == [1, 10, *b"yo", 2]
    assert list(parts[4].text.ids) == [1, 12, *b"go", 2]
    assert summary.prompt_tokens == 3 * 5 + 2 * 3


@pytest.mark.parametrize(("seed", "tries"), [(None, 3), (5, 1)])
async def test_speech_that_ends_at_once_is_tried_with_other_seeds_and_never_ok(open_chain, probe, seed, tries):
    chain = await open_chain()
    probe.frames = 0
    utterance = speech_pb2.Utterance(text="x", sampling=common_pb2.SamplingOptions(seed=seed))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await chain.speech.Synthesize(speech_pb2.SynthesizeRequest(utterance=utterance), timeout=10)
    assert caught.value.code() is grpc.StatusCode.INTERNAL and "first frame" in caught.value.details()
    assert len({request.sampling.seed for request in probe.requests}) == tries == len(probe.requests)


@pytest.mark.parametrize(("rate", "encoding", "dtype"), [(24000, 1, "<i2"), (16000, 1, "<i2"), (48000, 2, "<f4")])
async def test_unary_wav_is_a_whole_file(open_chain, probe, rate, encoding, dtype):
    chain = await open_chain()
    options = speech_pb2.OutputOptions(container=speech_pb2.CONTAINER_WAV, sample_rate_hz=rate, encoding=encoding)
    answer = await chain.speech.Synthesize(
        speech_pb2.SynthesizeRequest(utterance=speech_pb2.Utterance(text="x"), output=options), timeout=10
    )
    samples = round(probe.frames * SAMPLES_PER_FRAME * rate / 24000)
    assert answer.summary.samples == samples
    if dtype == "<i2":
        with wave.open(io.BytesIO(answer.audio)) as file:
            assert (file.getframerate(), file.getnchannels(), file.getnframes()) == (rate, 1, samples)
            pcm = np.frombuffer(file.readframes(samples), dtype) / 32768
    else:
        pcm = np.frombuffer(answer.audio[-samples * 4 :], dtype)
    assert len(pcm) == samples
    assert abs(pcm[samples // 20] - MARK) < 0.01  # the middle of frame 0, whose value is the mark alone


async def test_streamed_wav_begins_with_a_header(open_chain, probe):
    chain = await open_chain()
    options = speech_pb2.OutputOptions(container=speech_pb2.CONTAINER_WAV)
    _, audio, summary = await listen(chain.speech.StreamSynthesize(request(output=options), timeout=10))
    info = wav.read_info(audio)
    assert audio[:4] == b"RIFF" and info.start + summary.samples * 2 == len(audio)
    assert info.size == summary.samples * 2


@pytest.mark.parametrize(
    ("asked_ms", "frames"),
    [(1, 1), (80, 1), (81, 2), (560, 7), (1120, 14), (89_999, 1125), (600_000, 7500), (None, 7500)],
)
async def test_the_cap_is_whole_frames_and_never_a_reason_to_refuse(open_chain, probe, asked_ms, frames):
    chain = await open_chain()
    fields = {} if asked_ms is None else {"max_audio_ms": asked_ms}
    await listen(chain.speech.StreamSynthesize(request(**fields), timeout=10))
    ceiling = EndingRules().ceiling_frames("hello", 12.5)
    assert probe.requests[0].max_frames == min(frames, ceiling)


async def test_without_a_ceiling_the_cap_is_what_the_model_has_room_for(open_chain, probe):
    chain = await open_chain(ceiling_factor=0.0)
    await listen(chain.speech.StreamSynthesize(request(max_audio_ms=90_000), timeout=10))
    assert probe.requests[0].max_frames == 777 - len("hello") - 3


async def test_a_long_text_is_spoken_whole_in_units_that_fit(open_chain, probe):
    chain = await open_chain()
    text = "This sentence is one of many that do not fit the model together. " * 40
    _, audio, summary = await listen(chain.speech.StreamSynthesize(request(text), timeout=30))
    said = [bytes(one.prompt[-1].text.ids[2:-1]).decode() for one in probe.requests]
    assert "".join(said) == text and len(said) > 10
    assert probe.calls["codec"] == probe.calls["watermark"] == 1
    np.testing.assert_array_equal(np.frombuffer(audio, "<f4"), np.tile(expected(10), len(said)))
    assert summary.frames == 10 * len(said)
    for one in probe.requests:
        tokens = sum(len(part.text.ids) + len(part.audio.frames) for part in one.prompt)
        assert tokens + one.max_frames <= 777


async def test_a_cap_cuts_a_long_text_and_says_so(open_chain, probe):
    chain = await open_chain()
    text = "This sentence is one of many that do not fit the model together. " * 40
    cap = speech_pb2.Utterance(text=text, max_audio_ms=80 * 25)
    probe.cap = True
    answer = await chain.speech.Synthesize(speech_pb2.SynthesizeRequest(utterance=cap), timeout=30)
    assert answer.summary.frames == 25
    assert answer.summary.finish_reason == common_pb2.FINISH_REASON_MAX_LENGTH
    samples = np.frombuffer(answer.audio, "<i2")
    assert len(samples) == 25 * SAMPLES_PER_FRAME and samples[-1] == 0  # it fades out


async def test_generation_broken_off_is_taken_up_where_it_stopped(open_chain, probe):
    chain = await open_chain()
    probe.break_at = 4
    _, audio, _ = await listen(chain.speech.StreamSynthesize(request(), timeout=10))
    np.testing.assert_array_equal(np.frombuffer(audio, "<f4"), expected(10))
    first, second = probe.requests
    assert not first.generated and [frame.codes[0] for frame in second.generated] == [0, 1, 2, 3]
    assert second.sampling.seed == 77 and second.prompt == first.prompt


async def test_verify_and_voices(open_chain):
    chain = await open_chain()
    answer = await chain.speech.VerifyWatermark(speech_pb2.VerifyWatermarkRequest(), timeout=5)
    assert answer.found and answer.detectable and answer.position.ToMilliseconds() == 250
    assert answer.confidence == pytest.approx(0.9) and answer.key_id == "old"
    voices = await chain.speech.ListVoices(speech_pb2.ListVoicesRequest(), timeout=5)
    assert voices.bundle.bundle_id == "embedded" and voices.voices[0].speaker == 0
    assert voices.max_seq_len == 777  # as the backbone says
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", voices.version)
