"""OpenAI's speech API over fake stages, over real connections."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import wave

import av
import grpc
import httpx
import numpy as np
import pytest
from csm.speech.v1 import speech_pb2

from services.runtime.errors import CallError, ResourceExhausted
from support.fake_stages import MARK, SAMPLES_PER_FRAME
from support.http_face import open_http
from support.telemetry import tables

SPEECH = "/v1/audio/speech"
SPOKEN = 10 * SAMPLES_PER_FRAME * 2  # bytes: the fake backbone makes ten frames


def body(text="Hello there.", **fields):
    return {"model": "gpt-4o-mini-tts", "voice": "heart", "input": text, "response_format": "pcm", "seed": 7, **fields}


def events(text):
    assert text.endswith("\n\n")
    return [json.loads(block.removeprefix("data: ")) for block in text.split("\n\n")[:-1]]


@pytest.fixture
async def http(open_chain, caplog):
    chain = await open_chain()
    async with open_http(chain.addresses["gateway"]) as face:
        face.chain = chain
        yield face
    records = caplog.get_records("call") + caplog.get_records("teardown")
    ours = [record for record in records if record.name.startswith(("gateway.http", "uvicorn", "asyncio"))]
    assert [record.getMessage() for record in ours if record.levelname in ("ERROR", "CRITICAL")] == []


async def rpc_audio(chain, text="Hello there.", **fields):
    request = speech_pb2.StreamSynthesizeRequest(utterance=speech_pb2.Utterance(text=text, **fields))
    return b"".join([answer.audio.data async for answer in chain.speech.StreamSynthesize(request, timeout=20)])


async def test_pcm_is_what_the_rpc_gives(http):
    answer = await http.client.post(SPEECH, json=body(), headers={"accept": "application/octet-stream"})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "audio/pcm"
    assert len(answer.headers["x-request-id"]) == 32
    assert len(answer.content) == SPOKEN
    assert answer.content == await rpc_audio(http.chain)
    assert np.frombuffer(answer.content, "<i2").min() >= round(MARK * 32767) - 1


async def test_wav_has_the_same_samples(http):
    answer = await http.client.post(SPEECH, json=body(response_format="wav"))
    assert answer.headers["content-type"] == "audio/wav"
    with wave.open(io.BytesIO(answer.content)) as wav:
        assert (wav.getframerate(), wav.getnchannels(), wav.getsampwidth()) == (24_000, 1, 2)
    assert answer.content.endswith(await rpc_audio(http.chain))


@pytest.mark.parametrize(
    ("name", "kind"), [("mp3", "audio/mpeg"), (None, "audio/mpeg"), ("opus", "audio/ogg"), ("flac", "audio/flac")]
)
@pytest.mark.parametrize("stream_format", ["audio", "sse"])
async def test_formats_as_ffmpeg_reads_them(http, name, kind, stream_format):
    answer = await http.client.post(SPEECH, json=body(response_format=name, stream_format=stream_format))
    data = answer.content
    if stream_format == "sse":
        data = b"".join(base64.b64decode(event["audio"]) for event in events(answer.text)[:-1])
    else:
        assert answer.headers["content-type"] == kind
    with av.open(io.BytesIO(data)) as file:
        samples = sum(frame.samples for frame in file.decode(audio=0)) / file.streams.audio[0].rate
    assert samples == pytest.approx(0.8, abs=0.08)  # MP3 and Opus have priming samples


async def test_events_carry_the_same_audio_and_the_summary(http):
    answer = await http.client.post(SPEECH, json=body(stream_format="sse"))
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    *deltas, done = events(answer.text)
    assert {event["type"] for event in deltas} == {"speech.audio.delta"} and len(deltas) > 1
    assert b"".join(base64.b64decode(event["audio"]) for event in deltas) == await rpc_audio(http.chain)
    assert done["type"] == "speech.audio.done"
    usage, summary = done["usage"], done["csm"]
    assert usage["output_tokens"] == 10 and usage["total_tokens"] == usage["input_tokens"] + 10
    assert summary["trace_id"] == answer.headers["x-request-id"]
    assert (summary["seed"], summary["finish_reason"], summary["audio_ms"]) == ("7", "end_of_speech", 800)
    stages = {stage["stage"]: stage for stage in summary["stages"]}
    assert list(stages) == ["tokenizer", "backbone", "codec", "watermark"]
    assert stages["watermark"]["first_output_ms"] == summary["time_to_first_audio_ms"]


async def test_audio_comes_while_it_is_made(http, probe):
    probe.frames, probe.gate = 40, 10
    async with http.client.stream("POST", SPEECH, json=body()) as answer:
        pieces = answer.aiter_bytes()
        heard = len(await anext(pieces))
        assert 0 < heard < 10 * SAMPLES_PER_FRAME * 2
        probe.gate = None
        probe.touch()
        async for piece in pieces:
            heard += len(piece)
    assert heard == 40 * SAMPLES_PER_FRAME * 2


async def test_what_clients_always_send_is_taken(http, probe):
    for fields in (
        {"speed": 1.0, "instructions": "Speak like a pirate.", "stream_format": "audio"},
        {"voice": {"id": "Emma"}},
        {"voice": None, "speed": None, "response_format": "pcm", "something": [1]},
        {"temperature": 0.5, "top_k": 7, "max_audio_ms": 400, "seed": 2**64 - 1},
    ):
        assert (await http.client.post(SPEECH, json=body(**fields))).status_code == 200
    assert [request.prompt[-1].text.ids[1] for request in probe.requests] == [10, 12, 10, 10]
    sampling = probe.requests[-1].sampling
    assert (sampling.seed, sampling.top_k, sampling.temperature) == (2**64 - 1, 7, 0.5)


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"input": ""}, "input", "1 character or more"),
        ({"input": 5}, "input", "string"),
        ({"input": "..."}, "input", "speak"),
        ({"input": "a" * 100_001}, "input", "100000"),
        ({"input": "\ud800"}, "input", "surrogate"),
        ({"voice": "eve"}, "voice", "must be one of the voices here (heart, michael, emma, george)"),
        ({"voice": 7}, "voice", "name"),
        ({"response_format": "midi"}, "response_format", "must be one of mp3, opus, flac, wav, pcm"),
        ({"response_format": ["pcm"]}, "response_format", "must be one of"),
        ({"stream_format": "ogg"}, "stream_format", "audio, sse"),
        ({"speed": 1.5}, "speed", "must be 1"),
        ({"speed": True}, "speed", "must be 1"),
        ({"temperature": "hot"}, "temperature", "number"),
        ({"seed": -1}, "seed", "does not fit"),
        ({"top_k": 10**30}, "top_k", "does not fit"),
        ({"max_audio_ms": 0}, "max_audio_ms", "1 or more"),
        ({"model": 7}, "model", "string"),
    ],
)
async def test_a_wrong_field_is_named(http, fields, param, words):
    answer = await http.client.post(
        SPEECH, content=json.dumps(body(**fields)), headers={"content-type": "application/json"}
    )
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert words in error["message"] and error["message"].startswith(f"{param}: ") and error["code"]


@pytest.mark.parametrize(
    ("content", "kind", "status", "words"),
    [
        (b"{", "application/json", 400, "not JSON"),
        (b"[1]", "application/json", 400, "JSON object"),
        (b"[" * 100_000, "application/json", 400, "not JSON"),
        (b"\xff", "application/json", 400, "not JSON"),
        (b"", "application/json", 400, "not JSON"),
        (b"{}", "text/plain", 415, "application/json"),
        (b" " * (1024 * 1024 + 1), "application/json", 413, "1048576 bytes"),
    ],
)
async def test_a_body_that_is_no_request(http, content, kind, status, words):
    answer = await http.client.post(SPEECH, content=content, headers={"content-type": kind})
    assert answer.status_code == status and words in answer.json()["error"]["message"]


async def test_a_body_without_a_stated_length_is_bounded_too(http):
    async def endless():
        for _ in range(20_000):
            yield b" " * 1024

    headers = {"content-type": "application/json"}
    try:
        status = (await http.client.post(SPEECH, content=endless(), headers=headers)).status_code
    except httpx.TransportError:
        return  # the connection ended while more was being sent: a caller may see either
    assert status == 413


@pytest.mark.parametrize(
    ("failure", "status", "kind", "retry"),
    [
        (ResourceExhausted("full", 2.4), 429, "rate_limit_error", "3"),
        (CallError(grpc.StatusCode.UNAVAILABLE, "gone", reason="GONE", retryable=False), 503, "server_error", "1"),
        (CallError(grpc.StatusCode.INTERNAL, "broke", reason="BROKE"), 500, "server_error", None),
    ],
)
async def test_failures_before_the_audio_have_a_status(http, probe, failure, status, kind, retry):
    probe.refuse["backbone"] = failure
    answer = await http.client.post(SPEECH, json=body(stream_format="sse"))
    assert (answer.status_code, answer.json()["error"]["type"]) == (status, kind)
    assert answer.headers.get("retry-after") == retry


async def test_an_utterance_without_audio_is_no_success(http, probe):
    probe.frames = 0
    for format_ in ("pcm", "wav"):
        answer = await http.client.post(SPEECH, json=body(response_format=format_))
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "empty_speech")


@pytest.mark.parametrize("stream_format", ["audio", "sse"])
async def test_a_failure_in_the_middle_resets_the_connection(open_chain, probe, stream_format):
    chain = await open_chain(resumes=0)
    probe.frames, probe.break_at = 40, 20
    async with open_http(chain.addresses["gateway"]) as face:
        with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
            async with face.client.stream("POST", SPEECH, json=body(stream_format=stream_format)) as answer:
                assert answer.status_code == 200
                async for _ in answer.aiter_bytes():
                    pass


async def test_a_request_that_is_not_begun_in_time_is_refused_and_frees_its_slot(open_chain, probe):
    chain = await open_chain()
    probe.stall.add("tokenizer")
    async with open_http(chain.addresses["gateway"], queue_s=0.2) as face:
        answer = await face.client.post(SPEECH, json=body())
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
        assert "0.2 s" in answer.json()["error"]["message"]
        await probe.until(lambda: not +probe.active)


@pytest.mark.parametrize("gate", [0, 5])
async def test_a_caller_who_leaves_frees_the_slots(http, probe, gate):
    """Before the first audio (gate 0: no frame is made) and after it."""
    probe.frames, probe.gate = 100, gate
    async with http.client.stream("POST", SPEECH, json=body()) if gate else _Leaving(http, probe) as answer:
        if gate:
            await anext(answer.aiter_bytes())
            assert probe.active["backbone"] == 1
    await probe.until(lambda: not +probe.active)
    assert probe.generated <= gate


class _Leaving:
    def __init__(self, http, probe):
        self.task = asyncio.create_task(http.client.post(SPEECH, json=body()))
        self.probe = probe

    async def __aenter__(self):
        await self.probe.until(lambda: self.probe.active["backbone"] == 1)
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def __aexit__(self, *_):
        pass


async def test_no_more_requests_at_once_than_allowed(open_chain, probe):
    chain = await open_chain()
    probe.frames, probe.gate = 40, 10
    async with (
        open_http(chain.addresses["gateway"], max_requests=1) as face,
        face.client.stream("POST", SPEECH, json=body()) as first,
    ):
        await anext(first.aiter_bytes())
        answer = await face.client.post(SPEECH, json=body())
        assert answer.status_code == 429 and answer.headers["retry-after"] == "1"
        assert (await face.client.get("/health")).status_code == 200


async def test_tokens_go_through(open_chain, tmp_path):
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(f'[ann]\nsha256 = ["{hashlib.sha256(b"ann").hexdigest()}"]\ncharacters_per_minute = 20\n')
    bearer = [("authorization", "Bearer ann")]
    chain = await open_chain(tokens_file=str(tokens), metadata=bearer)
    async with open_http(chain.addresses["gateway"]) as face:
        for path in ("/v1/audio/voices", "/v1/models"):
            refused = await face.client.get(path)
            assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
            assert (await face.client.get(path, headers=dict(bearer))).status_code == 200
        wrong = await face.client.post(SPEECH, json=body(), headers={"authorization": "Bearer bob"})
        assert wrong.status_code == 401 and "bob" not in wrong.text
        assert (await face.client.post(SPEECH, json=body(), headers=dict(bearer))).status_code == 200
        over = await face.client.post(SPEECH, json=body(), headers=dict(bearer))
        assert over.status_code == 429 and 50 <= int(over.headers["retry-after"]) <= 60


async def test_voices_and_models(http):
    voices = (await http.client.get("/v1/audio/voices")).json()["voices"]
    assert [voice["id"] for voice in voices] == ["heart", "michael", "emma", "george"]
    assert all(voice["name"] and voice["description"] and voice["language"] for voice in voices)
    (model,) = (await http.client.get("/v1/models")).json()["data"]
    assert (model["id"], model["object"]) == ("embedded", "model")
    assert (await http.client.get("/v1/models/embedded")).json() == model
    missing = await http.client.get("/v1/models/gpt-5")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


async def test_health_follows_the_gateway(http):
    async with asyncio.timeout(20):  # the gateway reports what it has just become at its next look
        while (await http.client.get("/health")).status_code != 200:
            await asyncio.sleep(0.05)
    for path in ("/health", "/readyz", "/healthz", "/livez"):
        assert (await http.client.get(path)).status_code == 200
    await http.chain.servers["gateway"].stop(0)
    assert (await http.client.get("/health")).status_code == 503
    assert (await http.client.get("/healthz")).status_code == 200
    refused = await http.client.post(SPEECH, json=body())
    assert refused.status_code == 503 and refused.headers["retry-after"]


async def test_unknown_paths_and_methods_are_errors_of_the_same_form(http):
    for method, path, status in (("GET", "/v1/nothing", 404), ("GET", SPEECH, 405), ("GET", "/v1/", 404)):
        answer = await http.client.request(method, path)
        assert answer.status_code == status
        assert answer.json()["error"]["type"] == "invalid_request_error"


async def test_the_callers_trace_goes_on(http, spans):
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    answer = await http.client.post(
        SPEECH, json=body(), headers={"traceparent": f"00-{trace_id}-b7ad6b7169203331-01", "tracestate": "a=b"}
    )
    assert answer.headers["x-request-id"] == trace_id
    async with asyncio.timeout(5):  # the span ends with the request, after its last byte
        while not (found := [span for span in spans() if span.name == f"POST {SPEECH}"]):
            await asyncio.sleep(0.01)
    (ours,) = found
    assert f"{ours.parent.span_id:016x}" == "b7ad6b7169203331"
    assert ours.attributes["http.response.status_code"] == 200
    call = next(s for s in spans() if s.name.endswith("StreamSynthesize") and s.kind.name == "CLIENT")
    assert call.parent.span_id == ours.context.span_id
    assert call.context.trace_state.get("a") == "b"


async def test_metrics(metrics, http):  # in this order: what lives before is not measured
    await http.client.post(SPEECH, json=body())
    await http.client.post(SPEECH, json=body(input=""))
    await http.client.get("/health")
    measured = metrics()
    points = measured["http.server.request.duration"]
    assert {point.attributes["http.response.status_code"] for point in points} == {200, 400}
    assert {point.attributes["http.route"] for point in points} == {SPEECH}
    (first,) = measured["csm.http.time_to_first_audio"]
    assert first.count == 1
    ours = {name: points for name, points in measured.items() if name.startswith(("http.", "csm.http."))}
    seen = {
        name: {key.replace(".", "_") for point in points for key in point.attributes} for name, points in ours.items()
    }
    rows = tables.rows("HTTP metric")  # of docs/telemetry.md
    assert seen == {tables.one(row[0]): set(tables.quoted(row[4])) for row in rows}


async def test_other_origins_only_where_allowed(open_chain):
    chain = await open_chain()
    ask = {"origin": "https://page.example", "access-control-request-method": "POST"}
    async with open_http(chain.addresses["gateway"]) as face:
        assert "access-control-allow-origin" not in (await face.client.options(SPEECH, headers=ask)).headers
    async with open_http(chain.addresses["gateway"], cors_origins="https://page.example") as face:
        allowed = await face.client.options(SPEECH, headers=ask)
        assert allowed.headers["access-control-allow-origin"] == "https://page.example"
        answer = await face.client.post(SPEECH, json=body(), headers={"origin": "https://page.example"})
        assert answer.headers["access-control-allow-origin"] == "https://page.example"
        other = await face.client.options(SPEECH, headers={**ask, "origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers
