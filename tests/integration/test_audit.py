"""The audit trail: one record for each utterance that was marked, and nothing in it of what was said."""

import asyncio
import hashlib
import json
import os
from datetime import UTC, datetime, timedelta

import grpc
import pytest
from csm.common.v1 import common_pb2
from csm.speech.v1 import speech_pb2
from csm.watermark.v1 import watermark_pb2
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2, logs_service_pb2_grpc

from gateway.audit.sinks import FileSink
from services.runtime.settings import SettingError
from support.fake_stages import FakeWatermark

TEXT, TOKEN = "Zyxomma quillbright, said the old man.", "a-token-for-the-audit"


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


async def written(path, count):
    """The records, once there are `count`: they are written behind the calls."""
    async with asyncio.timeout(10):
        while len(found := records(path)) < count:
            await asyncio.sleep(0.02)
    return found


def request(text=TEXT, **fields):
    return speech_pb2.StreamSynthesizeRequest(utterance=speech_pb2.Utterance(text=text, **fields))


@pytest.fixture
async def audited(open_chain, tmp_path):
    """open(**settings) → (the chain, the file)."""
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(f'[radio]\ntoken = "{TOKEN}"\n')

    async def open_it(**settings):
        path = tmp_path / "audit.jsonl"
        metadata = (("authorization", f"Bearer {TOKEN}"),)
        chain = await open_chain(audit_log=str(path), tokens_file=str(tokens), metadata=metadata, **settings)
        return chain, path, {"timeout": 20, "metadata": metadata}

    return open_it


async def test_each_utterance_has_one_record_without_its_words(audited):
    chain, path, options = await audited()
    answers = [answer async for answer in chain.speech.StreamSynthesize(request(speaker=3), **options)]
    unary = await chain.speech.Synthesize(
        speech_pb2.SynthesizeRequest(utterance=speech_pb2.Utterance(text=TEXT, voice="emma")), **options
    )
    first, second = await written(path, 2)
    assert first["trace_id"] == answers[0].started.trace_id and second["trace_id"] == unary.trace_id
    assert (first["token"], first["speaker"], first["voice"], second["voice"]) == ("radio", 3, None, "emma")
    assert first["text_sha256"] == second["text_sha256"] == hashlib.sha256(TEXT.encode()).hexdigest()
    assert first["text_characters"] == len(TEXT) and first["bundle"] == "embedded"
    assert first["key_ids"] == ["new"] and first["event"] == "csm.speech.marked"
    summary = answers[-1].finished.summary
    assert first["audio_s"] == pytest.approx(summary.audio_duration.ToNanoseconds() / 1e9, abs=1e-3)
    assert first["finish_reason"] == "END_OF_SPEECH" and first["verified"] is None
    assert abs(datetime.fromisoformat(first["time"]) - datetime.now(UTC)) < timedelta(minutes=1)
    assert "yxomma" not in path.read_text() and os.stat(path).st_mode & 0o777 == 0o600


async def test_what_was_not_marked_has_none_and_what_was_broken_off_has_one(audited):
    chain, path, options = await audited()
    with pytest.raises(grpc.aio.AioRpcError):
        await chain.speech.Synthesize(
            speech_pb2.SynthesizeRequest(utterance=speech_pb2.Utterance(text=TEXT, voice="none such")), **options
        )
    chain.probe.frames = 500
    call = chain.speech.StreamSynthesize(request(), **options)
    async for answer in call:
        if answer.HasField("audio"):
            break
    call.cancel()
    (record,) = await written(path, 1)
    assert record["finish_reason"] == "BROKEN_OFF" and record["audio_s"] > 0


async def test_each_turn_of_a_conversation_has_its_own(audited):
    chain, path, options = await audited()
    texts = ["Good morning.", "And good night, Zyxomma."]

    async def said():
        yield speech_pb2.ConverseRequest(configure=speech_pb2.ConverseConfigure(speaker=1))
        for text in texts:
            for part in (text[:7], text[7:]):
                yield speech_pb2.ConverseRequest(append_text=speech_pb2.AppendText(text=part))
            yield speech_pb2.ConverseRequest(flush=speech_pb2.FlushTurn())

    assert [answer async for answer in chain.speech.Converse(said(), **options)]
    found = await written(path, 2)
    assert [one["text_sha256"] for one in found] == [hashlib.sha256(text.encode()).hexdigest() for text in texts]
    assert found[0]["trace_id"] == found[1]["trace_id"] and {one["token"] for one in found} == {"radio"}


@pytest.mark.parametrize(
    ("verdict", "result"),
    [("FOUND", "found"), ("NOT_FOUND", "not_found"), ("TOO_SHORT", "unsure"), (None, "failed")],
)
async def test_of_a_sample_the_mark_is_looked_for(audited, monkeypatch, metrics, verdict, result):
    heard = []

    async def detect(self, request, context):
        heard.append(len(request.audio.raw.data) // 4)
        if verdict is None:
            await context.abort(grpc.StatusCode.INTERNAL, "broken")
        value = common_pb2.WatermarkVerdict.Value(f"WATERMARK_VERDICT_{verdict}")
        return watermark_pb2.DetectResponse(found=verdict == "FOUND", confidence=0.75, verdict=value)

    monkeypatch.setattr(FakeWatermark, "Detect", detect)
    chain, path, options = await audited(audit_verify=1.0)
    metrics()
    answers = [answer async for answer in chain.speech.StreamSynthesize(request(), **options)]
    (record,) = await written(path, 1)
    assert record["verified"] == result and record["confidence"] == (None if verdict is None else 0.75)
    assert heard[0] == answers[-1].finished.summary.samples  # all of what was sent
    counted = {p.attributes["result"]: p.value for p in metrics()["csm.audit.verifications"] if p.value}
    assert counted == {result: 1}


async def test_records_leave_by_otlp_as_events(open_chain, monkeypatch):
    came = []

    class Receiver(logs_service_pb2_grpc.LogsServiceServicer):
        async def Export(self, request, context):
            for resource in request.resource_logs:
                came.extend((resource.resource, log) for scope in resource.scope_logs for log in scope.log_records)
            return logs_service_pb2.ExportLogsServiceResponse()

    server = grpc.aio.server()
    logs_service_pb2_grpc.add_LogsServiceServicer_to_server(Receiver(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", f"http://127.0.0.1:{port}")
    try:
        chain = await open_chain(audit_log="otlp")
        assert [answer async for answer in chain.speech.StreamSynthesize(request(), timeout=20)]
        async with asyncio.timeout(10):
            while not came:
                await asyncio.sleep(0.02)
        resource, record = came[0]
        values = {pair.key: pair.value for pair in record.attributes}
        assert record.event_name == "csm.speech.marked"
        assert values["csm.token"].string_value == "local"
        assert values["csm.text_sha256"].string_value == hashlib.sha256(TEXT.encode()).hexdigest()
        assert [key.string_value for key in values["csm.key_ids"].array_value.values] == ["new"]
        assert {pair.key: pair.value.string_value for pair in resource.attributes}["service.name"] == "csm-gateway"
        assert "yxomma" not in str(record)
    finally:
        await server.stop(0)


@pytest.mark.parametrize(
    ("value", "message"),
    [("/nowhere/at/all/audit", "CSM_AUDIT_LOG='/nowhere/at/all/audit': cannot be written"), ("otlp", "need OTEL_EXP")],
)
async def test_a_place_that_cannot_be_used_stops_the_start(open_chain, monkeypatch, value, message):
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    with pytest.raises(SettingError, match=message):
        await open_chain(audit_log=value)


def test_a_file_may_be_rotated_and_a_full_disk_is_counted(tmp_path, metrics, caplog):
    path = tmp_path / "audit.jsonl"
    sink = FileSink(str(path))
    metrics()
    sink.write({"n": 1}, 0)
    while not path.read_text():
        pass
    path.rename(tmp_path / "audit.1")
    sink.write({"n": 2}, 0)
    while not path.exists() or not path.read_text():
        pass
    sink._path = "/dev/full"
    sink.write({"n": 3}, 0)
    sink.close()
    assert json.loads((tmp_path / "audit.1").read_text()) == {"n": 1} and records(path) == [{"n": 2}]
    counted = {point.attributes["outcome"]: point.value for point in metrics()["csm.audit.records"]}
    assert counted == {"written": 2, "lost": 1} and "1 records are lost" in caplog.text
