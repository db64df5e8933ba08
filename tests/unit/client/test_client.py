"""The client against a real server on loopback: what it sends, what it raises, that leaving cancels."""

import asyncio
import subprocess
import sys
from contextlib import suppress

import grpc
import pytest
from csm.common.v1 import common_pb2
from csm.speech.v1 import speech_pb2
from csm_client import ContextTurn, SpeechClient, exceptions, tracing
from csm_client.address import is_loopback
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from services.runtime import tls
from support.fake_speech import FRAME, serving, tone

# Only paths: what .pth files import is not the client's doing.
PATHS = f"import sys; sys.path[:0] = {[path for path in sys.path if path]}\n"


@pytest.fixture
async def served():
    async with serving() as (fake, address), SpeechClient(address) as client:
        yield fake, client


async def heard(stream):
    return b"".join([data async for data in stream])


async def idle(fake):
    await asyncio.wait_for(fake.idle.wait(), 5)
    assert fake.running == 0


async def test_stream_gives_the_audio_and_both_ends(served):
    _, client = served
    stream = client.stream("hello")
    assert stream.started is None and stream.summary is None
    assert await heard(stream) == 5 * tone(FRAME)
    assert stream.started.trace_id == "ab" * 16
    assert stream.summary.frames == 5
    with pytest.raises(RuntimeError, match="only once"):
        await heard(stream)


async def test_every_option_arrives(served, tmp_path):
    fake, client = served
    (tmp_path / "turn.wav").write_bytes(b"RIFF from a file")
    options = {
        "voice": "ada",
        "speaker": 3,
        "context": [ContextTurn(1, "a", b"RIFF in memory"), ContextTurn(2, "b", tmp_path / "turn.wav")],
        "temperature": 0.5,
        "top_k": 7,
        "seed": 2**63,
        "max_audio_ms": 400,
        "sample_rate_hz": 16_000,
        "encoding": "pcm_f32le",
        "container": "wav",
    }
    await client.synthesize("hello", **options)
    await heard(client.stream("hello", **options))
    turns = [
        speech_pb2.ContextSegment(speaker=1, text="a", audio=common_pb2.AudioClip(wav=b"RIFF in memory")),
        speech_pb2.ContextSegment(speaker=2, text="b", audio=common_pb2.AudioClip(wav=b"RIFF from a file")),
    ]
    utterance = speech_pb2.Utterance(
        text="hello",
        voice="ada",
        speaker=3,
        context=turns,
        max_audio_ms=400,
        sampling=common_pb2.SamplingOptions(temperature=0.5, top_k=7, seed=2**63),
    )
    output = speech_pb2.OutputOptions(
        container=speech_pb2.CONTAINER_WAV, encoding=common_pb2.AUDIO_ENCODING_PCM_F32LE, sample_rate_hz=16_000
    )
    assert fake.requests == [
        speech_pb2.SynthesizeRequest(utterance=utterance, output=output),
        speech_pb2.StreamSynthesizeRequest(utterance=utterance, output=output),
    ]


async def test_what_is_not_said_is_left_to_the_server(served):
    fake, client = served
    await client.synthesize("hello")
    utterance = fake.requests[0].utterance
    assert not any(utterance.HasField(name) for name in ("speaker", "max_audio_ms"))
    assert not any(utterance.sampling.HasField(name) for name in ("temperature", "top_k", "seed"))
    assert not fake.requests[0].output.HasField("sample_rate_hz")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"seed": -1}, "seed"),
        ({"speaker": 2**31}, "speaker"),
        ({"encoding": "mp3"}, "encoding"),
        ({"top_k": "x"}, "top_k"),
    ],
)
async def test_what_cannot_be_sent_is_named(served, options, named):
    with pytest.raises(ValueError, match=f"^{named}: "):
        served[1].stream("hello", **options)


async def test_break_cancels_though_the_stream_is_kept(served):
    fake, client = served
    stream = client.stream("endless")
    async for _ in stream:
        break
    await idle(fake)
    assert stream.summary is None


async def test_an_exception_in_the_loop_cancels(served):
    fake, client = served
    with pytest.raises(ZeroDivisionError):
        async for _ in client.stream("endless"):
            _ = 1 / 0
    await idle(fake)


async def test_a_cancelled_task_cancels(served):
    fake, client = served
    task = asyncio.create_task(heard(client.stream("hang")))
    await fake.begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await idle(fake)


async def test_async_with_cancels_though_the_iterator_is_kept(served):
    fake, client = served
    async with client.stream("endless") as stream:
        iterator = aiter(stream)
        await anext(iterator)
    await idle(fake)
    await iterator.aclose()


@pytest.mark.parametrize("unary", [False, True])
@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", exceptions.InvalidRequest),
        ("overloaded", exceptions.Overloaded),
        ("unavailable", exceptions.Unavailable),
        ("crash", exceptions.ServerFault),
    ],
)
async def test_statuses_become_exceptions(served, text, kind, unary):
    _, client = served
    with pytest.raises(exceptions.SpeechError) as caught:
        await (client.synthesize(text) if unary else heard(client.stream(text)))
    assert type(caught.value) is kind
    if kind is exceptions.InvalidRequest:
        assert caught.value.violations == (("utterance.text", "must have 1 to 4000 characters, not 0"),)
        assert caught.value.reason == "INVALID_FIELD"
    if kind is exceptions.Overloaded:
        assert caught.value.retry_after_s == 1.5


async def test_a_broken_stream_keeps_what_came_and_raises(served):
    fake, client = served
    chunks = []
    with pytest.raises(exceptions.Unavailable, match="codec: gone"):
        async for data in client.stream("break"):
            chunks.append(data)
    assert len(chunks) == 5
    assert len(fake.requests) == 1, "never tried again once audio has come"


@pytest.mark.parametrize("text", ["no start", "no summary"])
async def test_a_stream_that_breaks_the_contract_is_a_fault(served, text):
    with pytest.raises(exceptions.ServerFault):
        await heard(served[1].stream(text))


async def test_unavailable_before_the_first_message_is_tried_again(served):
    fake, client = served
    assert len(await heard(client.stream("unavailable once"))) == 5 * len(tone(FRAME))
    assert len(fake.requests) == 2


async def test_a_deadline(served):
    fake, client = served
    with pytest.raises(exceptions.DeadlineExceeded):
        await heard(client.stream("hang", timeout_s=0.3))
    await idle(fake)


async def test_a_request_too_large_is_not_overload():
    async with serving(max_message_mib=1) as (_, address), SpeechClient(address) as client:
        with pytest.raises(exceptions.InvalidRequest, match="larger than max"):
            await client.verify(bytes(2**21))


async def test_nothing_listens():
    async with SpeechClient("127.0.0.1:1") as client:
        with pytest.raises(exceptions.Unavailable) as caught:
            await client.voices()
        assert caught.value.reason is None
        with pytest.raises(exceptions.Unavailable, match="nothing answers"):
            await client.wait_ready(timeout_s=0.3)


async def test_readiness_is_waited_for():
    async with serving() as (fake, address), SpeechClient(address) as client:
        await client.wait_ready(timeout_s=5)
        fake.ready = False
        with pytest.raises(exceptions.Unavailable, match="NOT_SERVING"):
            while True:
                await client.wait_ready(timeout_s=0.5)
                await asyncio.sleep(0.05)
        with pytest.raises(exceptions.Unavailable):
            await client.voices()
        assert not fake.requests, "a server that is not ready gets no calls"
        waiting = asyncio.create_task(client.wait_ready(timeout_s=10))
        fake.ready = True
        await waiting
        assert (await client.voices()).bundle.bundle_id == "fake"


async def test_calls_join_the_callers_trace(served):
    fake, client = served
    span = trace.NonRecordingSpan(
        trace.SpanContext(int("12" * 16, 16), int("34" * 8, 16), is_remote=False, trace_flags=trace.TraceFlags(1))
    )
    token = otel_context.attach(trace.set_span_in_context(span))
    try:
        await client.voices()
        await heard(client.stream("hello"))
    finally:
        otel_context.detach(token)
    assert [metadata["traceparent"][3:35] for metadata in fake.metadata] == ["12" * 16] * 2


async def test_tls_is_spoken_when_asked_for():
    async with serving() as (_, address), SpeechClient(address, credentials=grpc.ssl_channel_credentials()) as client:
        with pytest.raises(exceptions.Unavailable):  # the server speaks none
            await client.voices(timeout_s=5)


async def test_a_call_is_a_span_that_ends_as_the_call_does(served, monkeypatch):
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "_tracer", provider.get_tracer("test"))
    fake, client = served
    await client.voices()
    await heard(client.stream("hello"))
    async with client.stream("endless") as stream:
        iterator = aiter(stream)
        await anext(iterator)
    with suppress(asyncio.CancelledError):
        await anext(iterator)
    with pytest.raises(exceptions.InvalidRequest):
        await client.synthesize("")
    service = "csm.speech.v1.SpeechService/"
    ended = [(span.name, span.attributes["rpc.response.status_code"]) for span in exporter.get_finished_spans()]
    assert ended[:2] == [(f"{service}ListVoices", "OK"), (f"{service}StreamSynthesize", "OK")]
    assert ended[2][0] == f"{service}StreamSynthesize" and ended[2][1] == "CANCELLED"
    assert ended[3:] == [(f"{service}Synthesize", "INVALID_ARGUMENT")]
    sent = [metadata["traceparent"][3:35] for metadata in fake.metadata]
    assert sent == [f"{span.context.trace_id:032x}" for span in exporter.get_finished_spans()]


@pytest.mark.parametrize(
    ("address", "here"),
    [
        ("localhost:50050", True),
        ("127.8.0.1:1", True),
        ("[::1]:1", True),
        ("dns:///localhost:1", True),
        ("unix:/tmp/socket", True),
        ("ipv4:127.0.0.1:1,10.0.0.1:1", False),
        ("speech.example:443", False),
        ("10.0.0.1:1", False),
        ("localhost.example:1", False),
    ],
)
def test_plaintext_is_for_this_machine_alone(address, here):
    assert is_loopback(address) is here is tls.is_loopback(address)


def test_the_client_imports_what_its_distribution_requires_and_no_more():
    code = """
import sys
for name in ("grpc_health", "grpc_reflection", "grpc_status", "grpc_tools"):
    sys.modules[name] = None  # grpc imports some of them when they are there
import csm_client
known = {"grpc", "google", "opentelemetry", "csm", "csm_client", "typing_extensions", "cython_runtime"} | sys.stdlib_module_names
print(sorted({name.partition(".")[0] for name in sys.modules if name[0] != "_" and sys.modules[name]} - known))
"""
    run = subprocess.run([sys.executable, "-S", "-c", PATHS + code], capture_output=True, text=True)
    assert run.stdout == "[]\n", run.stderr
