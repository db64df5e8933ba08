"""The proxies of examples/proxies as they are, before a gateway and the HTTP process: real Envoy, nginx and Caddy."""

from __future__ import annotations

import shutil
import ssl
import struct

import grpc
import httpx
import pytest
from csm.speech.v1 import speech_pb2
from csm.voice.v1 import voice_pb2, voice_pb2_grpc
from csm_client import SpeechClient
from csm_client.exceptions import DeadlineExceeded, InvalidRequest, Overloaded
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from gateway.riva import riva_tts_pb2, riva_tts_pb2_grpc
from services.runtime.errors import ResourceExhausted
from support.authority import Authority
from support.fake_stages import SAMPLES_PER_FRAME
from support.http_face import open_http
from support.proxies import COMMANDS, PROXIES, running

FRAME = SAMPLES_PER_FRAME * 2


@pytest.fixture(params=COMMANDS)
async def proxy(request, open_chain, tmp_path):
    """The chain behind it, `proxied` a client through it, `root` what it is trusted by."""
    chain = await open_chain()
    authority = Authority()
    authority.issue("localhost").write(tmp_path)
    chain.ca = authority.write(tmp_path)
    chain.root = grpc.ssl_channel_credentials(authority.pem)
    chain.proxy = request.param
    async with (
        open_http(chain.addresses["gateway"]) as face,
        running(request.param, tmp_path, chain.addresses["gateway"], face.url) as address,
        SpeechClient(address, credentials=chain.root) as client,
        grpc.aio.secure_channel(address, chain.root) as channel,
    ):
        chain.through, chain.proxied, chain.proxied_channel = address, client, channel
        try:
            await client.wait_ready(60)
        except BaseException:
            print((tmp_path / "log").read_text()[-3000:])
            raise
        yield chain


def https(chain):
    context = ssl.create_default_context(cafile=chain.ca)
    return httpx.AsyncClient(base_url=f"https://{chain.through}", verify=context, timeout=30, trust_env=False)


async def test_a_stream_comes_while_it_is_made_and_leaving_it_frees_the_slots(proxy, probe):
    probe.frames, probe.gate = 100, 10
    stream = proxy.proxied.stream("Hello there.")
    heard = 0
    async for piece in stream:
        heard += len(piece)
        if heard >= 5 * FRAME:
            break
    assert probe.generated <= 10
    stream.cancel()
    await probe.until(lambda: not +probe.active)
    probe.gate = None
    probe.frames = 10
    stream = proxy.proxied.stream("Hello there.")
    assert len(b"".join([piece async for piece in stream])) == 10 * FRAME
    assert stream.summary.frames == 10


async def test_deadlines_go_through(proxy, probe):
    probe.frames, probe.gate = 100, 5
    with pytest.raises(DeadlineExceeded):
        async for _ in proxy.proxied.stream("Hello there.", timeout_s=2):
            pass
    assert probe.deadlines["backbone"] <= 2.1
    await probe.until(lambda: not +probe.active)


async def test_errors_keep_their_details(proxy, probe):
    with pytest.raises(InvalidRequest) as invalid:
        await proxy.proxied.synthesize("Hello.", voice="eve")
    assert invalid.value.violations[0][0] == "utterance.voice"
    probe.refuse["backbone"] = ResourceExhausted("full", 2.5, retryable=False)
    for _ in range(20):  # some proxies lose the status of a call without a message, now and then
        with pytest.raises(Overloaded) as overloaded:
            await proxy.proxied.synthesize("Hello.", timeout_s=10)
        assert overloaded.value.retry_after_s is not None


async def test_a_conversation(proxy):
    async with proxy.proxied.converse() as conversation:
        heard = []
        await conversation.say("One.")
        await conversation.end()
        async for event in conversation:
            heard.append(event)
    assert len(heard) > 3


async def test_every_service_of_the_gateway(proxy):
    channel = proxy.proxied_channel
    health = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service="readiness"))
    assert health.status == health_pb2.HealthCheckResponse.SERVING
    voices = await voice_pb2_grpc.VoiceServiceStub(channel).ListVoices(voice_pb2.ListVoicesRequest())
    assert len(voices.voices) == 4
    riva = riva_tts_pb2_grpc.RivaSpeechSynthesisStub(channel)
    assert (await riva.GetRivaSynthesisConfig(riva_tts_pb2.RivaSynthesisConfigRequest())).model_config
    ask = [reflection_pb2.ServerReflectionRequest(list_services="")]
    answers = [a async for a in reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter(ask))]
    assert "csm.speech.v1.SpeechService" in {s.name for s in answers[0].list_services_response.service}


async def test_http_streams_and_cancels(proxy, probe):
    probe.frames, probe.gate = 100, 10
    body = {"input": "Hello there.", "response_format": "pcm"}
    async with https(proxy) as client:
        async with client.stream("POST", "/v1/audio/speech", json=body) as answer:
            assert answer.status_code == 200
            assert 0 < len(await anext(answer.aiter_bytes())) <= 10 * FRAME
        await probe.until(lambda: not +probe.active)
        refused = await client.post("/v1/audio/speech", json={**body, "voice": "eve"})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "voice")
        assert "<html" in (await client.get("/")).text


async def test_an_authorization_that_comes_twice(proxy):
    """riva.client sends its metadata as call credentials and with each call."""
    twice = [("authorization", "Bearer a"), ("authorization", "Bearer a")]
    call = proxy.proxied_channel.unary_unary(
        "/csm.speech.v1.SpeechService/ListVoices",
        request_serializer=speech_pb2.ListVoicesRequest.SerializeToString,
        response_deserializer=speech_pb2.ListVoicesResponse.FromString,
    )
    if proxy.proxy == "nginx.conf":
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(speech_pb2.ListVoicesRequest(), metadata=twice, timeout=10)
        assert "400" in refused.value.details()
    else:
        assert (await call(speech_pb2.ListVoicesRequest(), metadata=twice, timeout=10)).bundle.bundle_id == "embedded"


@pytest.mark.parametrize("proxy", ["envoy.yaml"], indirect=True)  # the others know no gRPC-Web
async def test_grpc_web(proxy):
    request = speech_pb2.StreamSynthesizeRequest(
        utterance=speech_pb2.Utterance(text="Hello there.")
    ).SerializeToString()
    headers = {"content-type": "application/grpc-web+proto", "x-grpc-web": "1", "origin": "https://page.example"}
    async with https(proxy) as client:
        answer = await client.post(
            "/csm.speech.v1.SpeechService/StreamSynthesize",
            content=b"\0" + struct.pack(">I", len(request)) + request,
            headers=headers,
        )
    assert answer.headers["access-control-allow-origin"] == "https://page.example"
    audio, trailer = 0, b""
    data = answer.content
    while data:
        (length,) = struct.unpack(">I", data[1:5])
        message, data, is_trailer = data[5 : 5 + length], data[5 + length :], data[0] & 0x80
        if is_trailer:
            trailer = message
        else:
            audio += len(speech_pb2.StreamSynthesizeResponse.FromString(message).audio.data)
    assert audio == 10 * FRAME
    assert b"grpc-status:0" in trailer.replace(b" ", b"")


def test_the_page_names_every_file():
    text = (PROXIES / "README.md").read_text()
    assert all(f"]({path.name})" in text for path in PROXIES.iterdir() if path.name != "README.md")
    assert set(COMMANDS) == {path.name for path in PROXIES.iterdir()} - {"README.md"}


def test_binaries_are_there():
    assert all(shutil.which(command[0]) for command in COMMANDS.values())
