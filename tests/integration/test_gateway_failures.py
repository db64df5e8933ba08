"""What the caller and the stages see when something goes wrong: cancel, deadline, refusal, loss of a stage."""

import asyncio
import time

import grpc
import numpy as np
import pytest
from csm.common.v1 import common_pb2
from csm.speech.v1 import speech_pb2
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gateway.chain.fade import FADE_S
from gateway.stage_names import STAGES
from services.runtime.errors import InvalidArgument, ResourceExhausted, rich_details
from support.fake_stages import MARK, SAMPLES_PER_FRAME

FADE_SAMPLES = round(FADE_S * 24_000)
F32 = common_pb2.AUDIO_ENCODING_PCM_F32LE


def request(text="hello", **fields):
    output = fields.pop("output", speech_pb2.OutputOptions(encoding=F32))
    return speech_pb2.StreamSynthesizeRequest(utterance=speech_pb2.Utterance(text=text, **fields), output=output)


async def fails(call) -> grpc.aio.AioRpcError:
    """The error that ends `call`; audio read on the way must be marked, its end may fade out."""
    audio = b""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        while (response := await call.read()) is not grpc.aio.EOF:
            audio += response.audio.data
    samples = np.frombuffer(audio, "<f4")
    body, end = samples[:-FADE_SAMPLES], samples[-FADE_SAMPLES:]
    assert (body >= MARK).all()
    assert (end >= MARK).all() or (np.diff(end) <= 0).all()
    return caught.value


def pipeline_tasks():
    codes = {task: getattr(task.get_coro(), "cr_code", None) for task in asyncio.all_tasks()}
    return [task for task, code in codes.items() if code is not None and "gateway/chain" in code.co_filename]


async def assert_all_free(probe):
    await probe.until(lambda: not +probe.active)
    for _ in range(50):
        if not pipeline_tasks():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(pipeline_tasks())


async def read_frames(call, frames):
    read = 0
    while read < frames * SAMPLES_PER_FRAME * 4 - 700 * 4:
        read += len((await call.read()).audio.data)


async def test_cancel_while_the_gateway_reads(open_chain, probe):
    chain = await open_chain()
    probe.frames, probe.gate = 100, 5
    call = chain.speech.StreamSynthesize(request(), timeout=30)
    await read_frames(call, 5)
    assert probe.active["backbone"] == probe.active["codec"] == probe.active["watermark"] == 1
    call.cancel()
    await assert_all_free(probe)
    assert probe.generated == 5


async def test_cancel_while_the_gateway_is_blocked_on_a_write(open_chain, probe):
    """The caller stops reading: everything fills up to its bounds and stands still; then the caller leaves."""
    chain = await open_chain()
    probe.frames = 100_000
    call = chain.speech.StreamSynthesize(
        request(output=speech_pb2.OutputOptions(encoding=F32, sample_rate_hz=48000)), timeout=60
    )
    await read_frames(call, 5)
    generated = await probe.until_quiet()
    assert generated < 10_000, "nothing held the generator back"
    call.cancel()
    await assert_all_free(probe)
    assert probe.generated == generated


async def test_cancel_while_the_gateway_waits_for_the_tokenizer(open_chain, probe):
    chain = await open_chain()
    probe.stall = {"tokenizer"}
    call = chain.speech.StreamSynthesize(request(), timeout=30)
    await probe.until(lambda: probe.active["tokenizer"] == 1)
    call.cancel()
    await assert_all_free(probe)
    assert probe.calls["backbone"] == 0


async def test_leaving_without_a_word_frees_everything(open_chain, probe):
    """The caller's connection breaks."""
    chain = await open_chain()
    probe.frames, probe.gate = 100, 5
    call = chain.speech.StreamSynthesize(request(), timeout=30)
    await read_frames(call, 5)
    await chain.channel.close(grace=None)
    await assert_all_free(probe)


async def test_deadline_crosses_every_hop(open_chain, probe):
    chain = await open_chain()
    probe.gate = 3
    error = await fails(chain.speech.StreamSynthesize(request(), timeout=0.8))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await assert_all_free(probe)
    for stage in STAGES:
        assert 0 < probe.deadlines[stage] <= 0.81  # gRPC rounds to milliseconds


async def test_a_request_without_deadline_gets_the_gateways(open_chain, probe):
    chain = await open_chain(max_request_s=50.0)
    async for _ in chain.speech.StreamSynthesize(request()):
        pass
    assert all(40 < probe.deadlines[stage] <= 50.1 for stage in STAGES)


@pytest.mark.parametrize(
    ("stage", "field", "seen"),
    [
        ("tokenizer", "segments[0].text", "utterance.text"),
        ("tokenizer", "segments[0].speaker", "utterance.context[0].speaker"),
        ("encoder", "audio.raw.data", "utterance.context[0].audio.raw.data"),
        ("backbone", "sampling.top_k", "utterance.sampling.top_k"),
        ("backbone", "max_frames", "utterance.max_audio_ms"),
        ("backbone", "prompt", "utterance"),
    ],
)
async def test_a_stages_refusal_names_the_callers_field(open_chain, probe, stage, field, seen):
    chain = await open_chain()
    probe.refuse[stage] = InvalidArgument(field, "must be better")
    context = [speech_pb2.ContextSegment(text="a")] if "context" in seen else []
    error = await fails(chain.speech.StreamSynthesize(request(context=context)))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    details = [d for d in rich_details(error) if isinstance(d, error_details_pb2.BadRequest)]
    assert [(v.field, v.description) for v in details[0].field_violations] == [(seen, "must be better")]
    await assert_all_free(probe)


@pytest.mark.parametrize("stage", ["backbone", "codec", "watermark"])
async def test_overload_of_a_stage_is_told_before_the_first_message(open_chain, probe, stage):
    chain = await open_chain()
    probe.refuse[stage] = ResourceExhausted("all slots are taken", 1.5)
    call = chain.speech.StreamSynthesize(request(), timeout=10)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    retry = [d for d in rich_details(caught.value) if isinstance(d, error_details_pb2.RetryInfo)]
    assert retry[0].retry_delay.ToMilliseconds() == 1500
    await assert_all_free(probe)


async def test_a_full_gateway_refuses_calls_but_not_health_checks(open_chain, probe):
    chain = await open_chain(max_streams=1)
    probe.gate = 1
    first = chain.speech.StreamSynthesize(request(), timeout=20)
    await first.read()
    error = await fails(chain.speech.StreamSynthesize(request(), timeout=10))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    health = health_pb2_grpc.HealthStub(chain.channel)
    for name in ("liveness", "readiness"):
        answer = await health.Check(health_pb2.HealthCheckRequest(service=name), timeout=5)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    probe.gate = None
    probe.touch()
    while await first.read() is not grpc.aio.EOF:
        pass
    async for _ in chain.speech.StreamSynthesize(request(), timeout=10):
        pass


@pytest.mark.parametrize("stage", ["backbone", "codec", "watermark"])
async def test_a_stage_dies_mid_stream_and_comes_back(open_chain, probe, stage):
    chain = await open_chain()
    probe.gate = 5
    call = chain.speech.StreamSynthesize(request(), timeout=30)
    await read_frames(call, 5)
    began = time.monotonic()
    await chain.servers[stage].stop(0)
    error = await fails(call)
    assert error.code() is grpc.StatusCode.UNAVAILABLE, error.details()
    # 0.1 s as a rule; this distinguishes a notice from a timeout.
    assert time.monotonic() - began < 10
    await assert_all_free(probe)
    probe.gate = None
    await chain.start_stage(stage)
    async with asyncio.timeout(10):  # the gateway's channel finds the stage again
        while True:
            try:
                async for _ in chain.speech.StreamSynthesize(request(), timeout=5):
                    pass
                break
            except grpc.aio.AioRpcError as error:
                assert error.code() is grpc.StatusCode.UNAVAILABLE
                await asyncio.sleep(0.05)


async def test_no_watermark_no_audio(open_chain, probe):
    chain = await open_chain()
    await chain.servers["watermark"].stop(0)
    call = chain.speech.StreamSynthesize(request(), timeout=10)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    await assert_all_free(probe)


async def test_a_watermark_that_loses_samples_is_an_error(open_chain, probe):
    chain = await open_chain()
    probe.lose_samples = 3
    error = await fails(chain.speech.StreamSynthesize(request(), timeout=10))
    assert error.code() is grpc.StatusCode.INTERNAL and "19197 of 19200" in error.details()


async def test_a_watermark_that_finishes_early_is_an_error_not_a_cut(open_chain, probe):
    chain = await open_chain()
    probe.gate, probe.finish_early = 1, True
    error = await fails(chain.speech.StreamSynthesize(request(), timeout=10))
    assert error.code() is grpc.StatusCode.INTERNAL, error.details()
    await assert_all_free(probe)


async def test_a_reader_that_stalls_loses_its_slots(open_chain, probe):
    chain = await open_chain(reader_stall_s=0.5)
    probe.frames = 100_000
    call = chain.speech.StreamSynthesize(
        request(output=speech_pb2.OutputOptions(encoding=F32, sample_rate_hz=48000)), timeout=60
    )
    await read_frames(call, 5)
    await assert_all_free(probe)  # without a cancel
    error = None
    try:
        while await call.read() is not grpc.aio.EOF:
            pass
    except grpc.aio.AioRpcError as caught:
        error = caught
    assert error is not None and error.code() is grpc.StatusCode.ABORTED
    assert "0.5 s" in error.details()


async def test_the_gateways_limit_holds_for_longer_deadlines_too(open_chain, probe):
    chain = await open_chain(max_request_s=1.0)
    probe.gate = 2
    error = await fails(chain.speech.StreamSynthesize(request(), timeout=3600))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await assert_all_free(probe)


async def test_a_long_conversation_does_not_fill_the_tokenizer(open_chain, probe):
    chain = await open_chain()
    turns = [speech_pb2.ContextSegment(text="a")] * 32
    async for _ in chain.speech.StreamSynthesize(request(context=turns), timeout=20):
        pass
    assert probe.calls["encoder"] == 32 and 1 < probe.encoding_at_once <= 4


async def test_stages_of_different_bundles_keep_the_gateway_unready(open_chain, probe):
    probe.identity.codebooks += 1
    chain = await open_chain()
    served = f"tokenizer serves embedded ({probe.identity.codebooks} codebooks"
    assert chain.stages.info is None and served in chain.stages.why_not
    async with grpc.aio.insecure_channel(chain.addresses["gateway"]) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(service="readiness"), timeout=5
        )
    assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"output": speech_pb2.OutputOptions(sample_rate_hz=0)}, "output.sample_rate_hz"),
        ({"output": speech_pb2.OutputOptions(sample_rate_hz=96000)}, "output.sample_rate_hz"),
        ({"output": speech_pb2.OutputOptions(encoding=9)}, "output.encoding"),
        ({"output": speech_pb2.OutputOptions(container=9)}, "output.container"),
        ({"max_audio_ms": 0}, "utterance.max_audio_ms"),
        ({"max_audio_ms": -80}, "utterance.max_audio_ms"),
        ({"text": ""}, "utterance.text"),
        ({"text": "x" * 100_001}, "utterance.text"),
        ({"context": [speech_pb2.ContextSegment(text="a")] * 33}, "utterance.context"),
    ],
)
async def test_the_gateways_own_limits(open_chain, probe, fields, field):
    chain = await open_chain()
    error = await fails(chain.speech.StreamSynthesize(request(**fields), timeout=5))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.details().startswith(field + ":"), error.details()
    assert not probe.calls


async def test_a_truncated_proto_is_refused_and_the_server_goes_on(open_chain, probe):
    chain = await open_chain()
    raw = chain.channel.unary_stream("/csm.speech.v1.SpeechService/StreamSynthesize")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in raw(b"\x0a\xff\x01", timeout=5):
            pass
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details().startswith("request: is not a valid protobuf message")
    async for _ in chain.speech.StreamSynthesize(request(), timeout=10):
        pass
