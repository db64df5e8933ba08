"""Tokens and TLS of the whole chain in this process: fake stages, the real gateway, the real client."""

import asyncio
import logging

import grpc
import pytest
from csm.common.v1 import common_pb2
from csm.speech.v1 import speech_pb2
from csm_client import SpeechClient, exceptions
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from opentelemetry.trace import SpanKind

from gateway.config import GatewaySettings
from gateway.replicas import OPEN_ATTEMPTS
from gateway.stages import Stages
from models.bundle import load_bundle
from services.runtime import tls
from services.runtime.errors import ResourceExhausted, UnavailableError, rich_details
from services.runtime.settings import SettingError, read
from support.authority import Authority
from support.raw_http2 import frame, raw_caller

RADIO, NEXT_RADIO, TV = "the-token-of-the-radio", "the-next-token-of-the-radio", "the-token-of-television"
SPEECH = "csm.speech.v1.SpeechService"


def shows(token):
    return (("authorization", f"Bearer {token}"),)


@pytest.fixture
def tokens(tmp_path):
    file = tmp_path / "tokens.toml"
    file.write_text(
        f'[radio]\ntoken = ["{RADIO}", "{NEXT_RADIO}"]\nmax_streams = 1\n'
        f'[tv]\ntoken = "{TV}"\ncharacters_per_minute = 8\n'
    )
    return file


@pytest.fixture
async def chain(open_chain, tokens):
    return await open_chain(tokens_file=str(tokens), metadata=shows(TV))


def utterance(text="hello"):
    return speech_pb2.StreamSynthesizeRequest(utterance=speech_pb2.Utterance(text=text))


async def frames(call):
    count = 0
    while (response := await call.read()) is not grpc.aio.EOF:
        count += response.HasField("audio")
    return count


async def fails(call):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        if hasattr(call, "read"):
            await call.read()
        else:
            await call
    return caught.value


def reason(error):
    return next(d.reason for d in rich_details(error) if isinstance(d, error_details_pb2.ErrorInfo))


@pytest.mark.parametrize(("metadata", "why"), [(None, "NO_TOKEN"), (shows("not-a-token-of-anyone"), "WRONG_TOKEN")])
async def test_every_method_wants_a_token(chain, probe, metadata, why):
    methods = speech_pb2.DESCRIPTOR.services_by_name["SpeechService"].methods
    assert len(methods) >= 4
    for method in methods:
        request = getattr(speech_pb2, method.input_type.name)()
        sent = iter([request]) if method.client_streaming else request
        error = await fails(getattr(chain.speech, method.name)(sent, timeout=10, metadata=metadata))
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED and reason(error) == why
    assert not probe.requests


async def test_a_call_without_a_token_ends_before_its_request_was_sent(chain):
    """A unary method would wait for the whole request, up to the 64 MiB that one may have, to refuse it."""

    async def never():
        await asyncio.Event().wait()
        yield b""

    verify = chain.channel.stream_unary(f"/{SPEECH}/VerifyWatermark")
    call = verify(never(), timeout=20, metadata=shows("not-a-token-of-anyone"))
    error = await fails(call)
    assert error.code() is grpc.StatusCode.UNAUTHENTICATED and reason(error) == "WRONG_TOKEN"


async def test_health_and_reflection_want_none(chain):
    health = health_pb2_grpc.HealthStub(chain.channel)
    for name in ("liveness", "readiness"):
        answer = await health.Check(health_pb2.HealthCheckRequest(service=name), timeout=5)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING

    def services():
        with grpc.insecure_channel(chain.addresses["gateway"]) as channel:
            return list(ProtoReflectionDescriptorDatabase(channel).get_services())

    assert SPEECH in await asyncio.to_thread(services)


async def test_all_tokens_of_a_name_are_good_and_spans_carry_the_name_alone(chain, spans, caplog):
    caplog.set_level(logging.DEBUG)
    for token in (RADIO, NEXT_RADIO):
        assert await frames(chain.speech.StreamSynthesize(utterance(), timeout=10, metadata=shows(token)))
    await fails(chain.speech.StreamSynthesize(utterance(), timeout=10, metadata=shows(RADIO + "x")))
    served = [span for span in spans() if span.kind is SpanKind.SERVER and SPEECH in span.name]
    assert [span.attributes.get("csm.token") for span in served] == ["radio", "radio", None]
    written = caplog.text + "".join(span.to_json() for span in spans())
    assert RADIO not in written and NEXT_RADIO not in written


async def test_tokens_are_exchanged_while_a_stream_runs(metrics, chain, probe, tokens, caplog):
    def stale():
        (point,) = metrics()["csm.gateway.tokens.stale"]
        return point.value

    probe.gate = 2
    call = chain.speech.StreamSynthesize(utterance(), timeout=30, metadata=shows(RADIO))
    await call.read()
    whole = f'[radio]\ntoken = "{NEXT_RADIO}"\n'
    assert stale() == 0
    tokens.write_text(whole[:-5])  # half written
    assert stale() == 1  # no call has come yet
    ask = speech_pb2.ListVoicesRequest()
    await chain.speech.ListVoices(ask, timeout=5, metadata=shows(RADIO))
    (warning,) = [record.message for record in caplog.records if "stay in use" in record.message]
    assert "tokens.toml" in warning and "token-of" not in warning
    tokens.write_text(whole)
    assert stale() == 0
    await chain.speech.ListVoices(ask, timeout=5, metadata=shows(NEXT_RADIO))
    for gone in (RADIO, TV):
        error = await fails(chain.speech.ListVoices(ask, timeout=5, metadata=shows(gone)))
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED
    probe.gate = None
    probe.touch()
    assert await frames(call) >= probe.frames - 2


async def test_beyond_its_streams_a_token_is_told_when_to_come_back_and_is_not_tried_again(chain, probe, spans):
    probe.gate = 2
    first = chain.speech.StreamSynthesize(utterance(), timeout=30, metadata=shows(RADIO))
    await first.read()
    error = await fails(chain.speech.StreamSynthesize(utterance(), timeout=10, metadata=shows(NEXT_RADIO)))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and reason(error) == "TOKEN_STREAMS"
    assert any(isinstance(d, error_details_pb2.RetryInfo) for d in rich_details(error))
    refused = [span for span in spans() if span.kind is SpanKind.SERVER and span.name.endswith("/StreamSynthesize")]
    assert len(refused) == 1
    probe.gate = None
    probe.touch()
    await frames(first)
    assert await frames(chain.speech.StreamSynthesize(utterance(), timeout=10, metadata=shows(RADIO)))


async def test_a_request_that_does_not_arrive_counts_as_its_tokens_call(chain):
    method, token = f"/{SPEECH}/Synthesize", (b"authorization", f"Bearer {RADIO}".encode())
    async with raw_caller(chain.addresses["gateway"]) as caller, asyncio.timeout(30):
        await caller.send(half := await caller.open(method, token), frame(bytes(1000), announced=2000))
        await caller.send(second := await caller.open(method, token), frame(bytes(1000), announced=2000))
        assert await caller.status(second) == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
        assert not caller.ended[half].is_set()
        await caller.send(voices := await caller.open(f"/{SPEECH}/ListVoices", token), frame(b""), end=True)
        assert await caller.status(voices) == 0
        caller.reset(half)
        async with asyncio.timeout(10):
            while True:
                try:
                    assert await frames(chain.speech.StreamSynthesize(utterance(), timeout=10, metadata=shows(RADIO)))
                    break
                except grpc.aio.AioRpcError as error:
                    assert reason(error) == "TOKEN_STREAMS"


async def test_beyond_its_characters_a_token_is_told_when_to_come_back(chain, probe):
    probe.refuse["codec"] = ResourceExhausted("full", 1)
    await fails(chain.speech.StreamSynthesize(utterance("hello"), timeout=10, metadata=shows(TV)))
    probe.refuse.clear()
    # What was refused was not counted; what is spoken is.
    assert await frames(chain.speech.StreamSynthesize(utterance("hello"), timeout=10, metadata=shows(TV)))
    error = await fails(chain.speech.StreamSynthesize(utterance("hello"), timeout=10, metadata=shows(TV)))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and reason(error) == "TOKEN_CHARACTERS"
    (retry,) = [d for d in rich_details(error) if isinstance(d, error_details_pb2.RetryInfo)]
    assert 0 < retry.retry_delay.ToMilliseconds() <= 60_000


@pytest.mark.parametrize("refusal", [ResourceExhausted("full", 1), UnavailableError("gone")], ids=["full", "gone"])
async def test_a_stage_is_tried_by_the_gateway_and_not_again_by_its_caller(open_chain, probe, refusal):
    chain = await open_chain()
    probe.refuse["backbone"] = refusal
    await fails(chain.speech.StreamSynthesize(utterance(), timeout=10))
    tries = OPEN_ATTEMPTS
    assert probe.calls["backbone"] == tries
    async with SpeechClient(chain.addresses["gateway"]) as client:
        with pytest.raises(exceptions.SpeechError):
            await client.synthesize("hello")
    assert probe.calls["backbone"] == 2 * tries


async def test_mutual_tls_on_every_hop_and_a_token(open_chain, probe, tmp_path, tokens):
    authority = Authority()
    ca = authority.write(tmp_path)
    server = dict(zip(("tls_cert_file", "tls_key_file"), authority.issue().write(tmp_path, "server"), strict=True))
    server["tls_client_ca_file"] = ca
    cert, key = authority.issue("gateway.example").write(tmp_path, "gateway")
    files = tls.ClientFiles(ca, *authority.issue("caller.example").write(tmp_path, "caller"))
    chain = await open_chain(
        stage_settings=server,
        **server,
        tokens_file=str(tokens),
        metadata=shows(TV),
        upstream_ca_file=ca,
        upstream_cert_file=cert,
        upstream_key_file=key,
        credentials=tls.reloadable_channel_credentials(files),
    )
    address, credentials = chain.addresses["gateway"], tls.channel_credentials(files)
    async with SpeechClient(address, credentials=credentials, token=lambda: RADIO) as client:
        await client.wait_ready(5)
        answer = await client.synthesize("hello")
        assert answer.summary.frames == probe.frames
        assert answer.summary.finish_reason == common_pb2.FINISH_REASON_END_OF_SPEECH
    async with SpeechClient(address, credentials=credentials) as client:
        with pytest.raises(exceptions.Unauthenticated) as caught:
            await client.voices()
        assert caught.value.reason == "NO_TOKEN"
    async with SpeechClient(address, credentials=tls.channel_credentials(tls.ClientFiles(ca))) as client:
        with pytest.raises(exceptions.Unavailable):
            await client.voices(timeout_s=5)


async def test_stages_beyond_this_machine_want_tls_or_plaintext_by_name(caplog):
    bundle, beyond = load_bundle("embedded"), {"backbone": "backbone.example:50052"}
    with pytest.raises(SettingError, match=r"CSM_BACKBONE_ADDRESS='backbone.*CSM_UPSTREAM_CA_FILE, or CSM_INSECURE"):
        Stages(read(GatewaySettings, {}, **beyond), bundle)
    with pytest.raises(SettingError, match=r"CSM_UPSTREAM_CA_FILE, .*none.crt: No such file"):
        Stages(read(GatewaySettings, {}, **beyond, upstream_ca_file="none.crt"), bundle)
    async with Stages(read(GatewaySettings, {}, **beyond, insecure="plaintext"), bundle):
        assert "calls backbone in plaintext beyond this machine" in caplog.text
