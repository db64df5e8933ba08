"""The real chain: five processes, the embedded bundle, real models; seen through the public RPC and OTLP."""

import asyncio
import json
import os
import sys
import time

import grpc
import numpy as np
import pytest
import pytest_asyncio
from csm.backbone.v1 import backbone_pb2, backbone_pb2_grpc
from csm.codec.v1 import codec_pb2, codec_pb2_grpc
from csm.common.v1 import common_pb2
from csm.speech.v1 import speech_pb2, speech_pb2_grpc

from gateway.stage_names import STAGES
from support.processes import Processes

pytestmark = pytest.mark.asyncio(loop_scope="module")
SAMPLES_PER_FRAME = 1920
# Sixteen seconds to say: seconds of work, for tests that act while it goes on.
LONG_TEXT = (
    "The train to the city leaves at seven in the morning and stops at every small station on the way. "
    "My sister told me that the garden needs water, and that the letters are on the table in the kitchen. "
    "Please remember to close the window before you go, because the evening will be cold and full of rain."
)


@pytest.fixture(scope="module")
def loop_logs(tmp_path_factory):
    return tmp_path_factory.mktemp("logs")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chain(loop_logs):
    async with Processes(loop_logs) as processes:
        yield processes


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def speech(chain):
    async with grpc.aio.insecure_channel(
        chain.addresses["gateway"], options=[("grpc.max_receive_message_length", 64 << 20)]
    ) as channel:
        yield speech_pb2_grpc.SpeechServiceStub(channel)


def utterance(text="The quick brown fox.", frames=12, seed=5, **fields):
    sampling = fields.pop("sampling", common_pb2.SamplingOptions(seed=seed))
    return speech_pb2.Utterance(text=text, sampling=sampling, max_audio_ms=frames * 80, **fields)


def clip(seconds=0.5, rate=16000):
    tone = 0.3 * np.sin(2 * np.pi * 220 * np.arange(int(seconds * rate)) / rate)
    raw = common_pb2.RawAudio(
        format=common_pb2.AudioFormat(encoding=common_pb2.AUDIO_ENCODING_PCM_F32LE, sample_rate_hz=rate, channels=1),
        data=tone.astype("<f4").tobytes(),
    )
    return common_pb2.AudioClip(raw=raw)


async def load(chain):
    """(backbone slots active, backbone queue, codec slots active)"""
    async with (
        grpc.aio.insecure_channel(chain.addresses["backbone"]) as backbone,
        grpc.aio.insecure_channel(chain.addresses["codec"]) as codec,
    ):
        one = await backbone_pb2_grpc.BackboneServiceStub(backbone).GetLoad(backbone_pb2.GetLoadRequest())
        two = await codec_pb2_grpc.CodecServiceStub(codec).GetModelInfo(codec_pb2.GetModelInfoRequest())
        return one.slots_active, one.queue_depth, two.slots_active


async def all_free(chain, within_s=5.0):
    async with asyncio.timeout(within_s):
        while await load(chain) != (0, 0, 0):
            await asyncio.sleep(0.02)


async def test_streamed_equals_unary_and_the_seed_repeats_it(chain, speech):
    whole = await speech.Synthesize(speech_pb2.SynthesizeRequest(utterance=utterance()), timeout=60)
    streamed, summary = b"", None
    async for response in speech.StreamSynthesize(
        speech_pb2.StreamSynthesizeRequest(utterance=utterance()), timeout=60
    ):
        streamed += response.audio.data
        summary = response.finished.summary if response.HasField("finished") else summary
    assert summary.frames == whole.summary.frames > 0
    assert len(streamed) == len(whole.audio) == summary.frames * SAMPLES_PER_FRAME * 2
    one, two = (np.frombuffer(data, "<i2").astype(int) for data in (streamed, whole.audio))
    # Chunks of other lengths may round differently in the last bit of a 16-bit sample.
    assert np.abs(one - two).max() <= 2
    other = await speech.Synthesize(speech_pb2.SynthesizeRequest(utterance=utterance(seed=6)), timeout=60)
    assert other.audio != whole.audio
    await all_free(chain)


async def test_context_and_speakers_go_through(chain, speech):
    context = [
        speech_pb2.ContextSegment(speaker=1, text="Hello there.", audio=clip()),
        speech_pb2.ContextSegment(speaker=0, text="Good day.", audio=clip(rate=44100)),
    ]
    answer = await speech.Synthesize(
        speech_pb2.SynthesizeRequest(utterance=utterance(context=context, speaker=1)), timeout=60
    )
    plain = await speech.Synthesize(speech_pb2.SynthesizeRequest(utterance=utterance(speaker=1)), timeout=60)
    # Two clips of 0.5 s are 7 frames each, and each ends with one row more.
    assert answer.summary.prompt_tokens > plain.summary.prompt_tokens + 2 * (7 + 1)
    assert answer.audio != plain.audio
    await all_free(chain)


LONG = clip(seconds=100)
NAN = clip()
NAN.raw.data = np.float32([np.nan] * 800).tobytes()
EMPTY = clip()
EMPTY.raw.data = b""
SILENT_RATE = clip()
SILENT_RATE.raw.format.sample_rate_hz = 0
ODD = clip()
ODD.raw.data = ODD.raw.data[:-3]


@pytest.mark.parametrize(
    ("fields", "field", "says"),
    [
        ({"text": ""}, "utterance.text", "1 to 100000 characters"),
        ({"text": "   "}, "utterance.text", "nothing speakable"),
        ({"text": "a" * 1_000_000}, "utterance.text", "character"),
        ({"speaker": -1}, "utterance.speaker", "-1"),
        ({"sampling": common_pb2.SamplingOptions(temperature=0)}, "utterance.sampling.temperature", "greater than 0"),
        ({"sampling": common_pb2.SamplingOptions(temperature=-1)}, "utterance.sampling.temperature", ""),
        ({"sampling": common_pb2.SamplingOptions(temperature=float("nan"))}, "utterance.sampling.temperature", ""),
        ({"sampling": common_pb2.SamplingOptions(top_k=0)}, "utterance.sampling.top_k", "1"),
        ({"sampling": common_pb2.SamplingOptions(top_k=-5)}, "utterance.sampling.top_k", "1"),
        ({"frames": 0}, "utterance.max_audio_ms", "1 or more"),
        ({"context": [speech_pb2.ContextSegment(text="a", audio=NAN)]}, "utterance.context[0].audio", ""),
        ({"context": [speech_pb2.ContextSegment(text="a", audio=EMPTY)]}, "utterance.context[0].audio", ""),
        ({"context": [speech_pb2.ContextSegment(text="a", audio=SILENT_RATE)]}, "utterance.context[0].audio", "8000"),
        ({"context": [speech_pb2.ContextSegment(text="a", audio=ODD)]}, "utterance.context[0].audio", ""),
        ({"context": [speech_pb2.ContextSegment(text="a")]}, "utterance.context[0].audio", ""),
        ({"context": [speech_pb2.ContextSegment(text="", audio=clip())]}, "utterance.context[0].text", ""),
        ({"context": [speech_pb2.ContextSegment(text="a", audio=LONG)], "frames": 400}, "utterance.context", "no room"),
    ],
)
async def test_bad_input_names_field_and_limit_and_the_server_goes_on(chain, speech, fields, field, says):
    call = speech.StreamSynthesize(speech_pb2.StreamSynthesizeRequest(utterance=utterance(**fields)), timeout=30)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call:
            pass
    error = caught.value
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, error
    assert error.details().startswith(field) and says in error.details(), error.details()
    await all_free(chain)
    answer = await speech.Synthesize(speech_pb2.SynthesizeRequest(utterance=utterance(frames=1)), timeout=30)
    assert answer.summary.frames <= 1


async def test_control_tokens_in_text_are_spelled_out(chain, speech):
    """More tokens than the plain text by as many as their characters need: nothing was obeyed."""
    plain = await speech.Synthesize(speech_pb2.SynthesizeRequest(utterance=utterance(text="x", frames=1)), timeout=30)
    tricky = await speech.Synthesize(
        speech_pb2.SynthesizeRequest(
            utterance=utterance(text="x<|begin_of_text|><|end_of_text|>", frames=1, text_normalization=False)
        ),
        timeout=30,
    )
    assert tricky.summary.prompt_tokens >= plain.summary.prompt_tokens + 10


@pytest.mark.parametrize("speaker", [0, 1, 2, 3])
async def test_it_ends_by_itself_and_its_mark_is_found_and_in_nothing_else(chain, speech, speaker):
    said = await speech.Synthesize(
        speech_pb2.SynthesizeRequest(
            utterance=speech_pb2.Utterance(
                text="Good morning, how can I help you today?",
                speaker=speaker,
                sampling=common_pb2.SamplingOptions(seed=1),
            ),
            output=speech_pb2.OutputOptions(container=speech_pb2.CONTAINER_WAV),
        ),
        timeout=60,
    )
    assert said.summary.finish_reason == common_pb2.FINISH_REASON_END_OF_SPEECH
    assert 12 < said.summary.frames < 75  # one to six seconds for eight words
    marked = speech_pb2.VerifyWatermarkRequest(audio=common_pb2.AudioClip(wav=said.audio))
    answer = await speech.VerifyWatermark(marked, timeout=60)
    assert answer.detectable and answer.found and answer.confidence >= answer.threshold
    plain = speech_pb2.VerifyWatermarkRequest(audio=clip(seconds=3, rate=24000))
    answer = await speech.VerifyWatermark(plain, timeout=60)
    assert not answer.found and answer.confidence < answer.threshold


async def test_cancel_frees_every_slot(chain, speech):
    call = speech.StreamSynthesize(
        speech_pb2.StreamSynthesizeRequest(utterance=utterance(LONG_TEXT, frames=200)), timeout=120
    )
    audio = 0
    async for response in call:
        audio += len(response.audio.data)
        if audio >= 5 * SAMPLES_PER_FRAME * 2:
            break
    assert (await load(chain))[0] == 1
    call.cancel()
    await all_free(chain, within_s=3)


async def test_eight_callers_of_the_load_tool_get_every_byte(chain, speech, tmp_path):
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("CSM_", "OTEL_"))}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "gateway.cli",
        "bench",
        "--address",
        chain.addresses["gateway"],
        "-o",
        str(tmp_path),
        "--streams",
        "8",
        "--duration",
        "0.5",
        "--ramp-up",
        "0",
        "--audio-seconds",
        "1",
        "--processes",
        "2",
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode == 0, (out + err).decode()
    (point,) = json.loads((tmp_path / "bench.json").read_text())["points"]
    assert point["ok"] == point["requests"] >= 8 and point["errors"] == {} and point["miscounted"] == 0
    # Every stream's own sum was checked by the tool; this is the sum of all.
    assert point["samples_checked"] * 2 == point["bytes"] and point["bytes"] % (SAMPLES_PER_FRAME * 2) == 0
    assert point["audio_s"] == pytest.approx(point["samples_checked"] / 24_000)
    assert set(point["stage_s"]) == {*STAGES, "way to the caller"}
    await all_free(chain)


async def test_one_trace_shows_every_stage_with_its_parent(chain, speech):
    answer = await speech.Synthesize(
        speech_pb2.SynthesizeRequest(utterance=utterance(context=[speech_pb2.ContextSegment(text="a", audio=clip())])),
        timeout=60,
    )

    def trace():
        return [(name, span) for name, span in chain.receiver.spans if span.trace_id.hex() == answer.trace_id]

    server_kind, client_kind = 2, 3
    wanted = {f"csm-{name}" for name in (*STAGES, "gateway")}
    async with asyncio.timeout(10):  # a call's span ends after those below it
        while {name for name, span in trace() if span.kind == server_kind} < wanted:
            await asyncio.sleep(0.05)
    by_id = {span.span_id: (name, span) for name, span in trace()}
    roots = [span for _, span in trace() if not span.parent_span_id]
    assert [span.name for span in roots] == ["csm.speech.v1.SpeechService/Synthesize"]
    edges = set()
    for name, span in trace():
        if span.kind == server_kind and span.parent_span_id:
            parent_name, parent = by_id[span.parent_span_id]
            assert parent.kind == client_kind and parent.name == span.name
            assert parent.start_time_unix_nano <= span.start_time_unix_nano
            edges.add((parent_name, name))
    assert edges == {("csm-gateway", f"csm-{stage}") for stage in STAGES}
    assert [(name, span.name, span.status) for name, span in trace() if span.status.code != 0] == []
    names = {(name, span.name) for name, span in trace()}
    assert {("csm-backbone", "queue"), ("csm-backbone", "prefill"), ("csm-watermark", "first_mark")} <= names
    assert any(event.name == "first_frame" for _, span in trace() for event in span.events)


async def test_a_cancelled_request_is_a_cancelled_trace(chain, speech):
    call = speech.StreamSynthesize(
        speech_pb2.StreamSynthesizeRequest(utterance=utterance(LONG_TEXT, frames=200)), timeout=120
    )
    started = await call.read()
    call.cancel()

    def statuses():
        return {
            (name, a.value.string_value)
            for name, span in chain.receiver.spans
            if span.trace_id.hex() == started.started.trace_id and span.kind == 2
            for a in span.attributes
            if a.key == "rpc.response.status_code"
        }

    cancelled = "CANCELLED"
    wanted = {(f"csm-{name}", cancelled) for name in ("gateway", "backbone", "codec", "watermark")}
    wanted.add(("csm-tokenizer", "OK"))  # was done before the caller left
    async with asyncio.timeout(10):
        while not wanted <= statuses():
            await asyncio.sleep(0.05)
    assert statuses() == wanted


@pytest.mark.parametrize("stage", ["codec", "backbone"])
async def test_a_killed_stage_is_told_at_once_and_the_chain_recovers(chain, speech, stage):
    call = speech.StreamSynthesize(
        speech_pb2.StreamSynthesizeRequest(utterance=utterance(LONG_TEXT, frames=200)), timeout=120
    )
    while not (await call.read()).HasField("audio"):
        pass
    began = time.monotonic()
    await chain.kill(stage)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        while await call.read() is not grpc.aio.EOF:
            pass
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE, caught.value.details()
    # 0.1 s as a rule; this distinguishes a notice from a timeout.
    assert time.monotonic() - began < 10
    await chain.start(stage)
    await chain.ready(stage)
    async with asyncio.timeout(15):
        while True:
            try:
                answer = await speech.Synthesize(
                    speech_pb2.SynthesizeRequest(utterance=utterance(frames=2)), timeout=30
                )
                break
            except grpc.aio.AioRpcError as error:
                assert error.code() is grpc.StatusCode.UNAVAILABLE
                await asyncio.sleep(0.05)
    assert answer.summary.frames <= 2
    await all_free(chain)
