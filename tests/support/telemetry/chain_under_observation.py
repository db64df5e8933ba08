"""The real chain, five processes, and all that it tells of itself: spans, metrics, logs."""

from __future__ import annotations

import asyncio
import io
import json
import re
import urllib.request
import wave
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
import pytest
from csm_client import ContextTurn, SpeechClient
from csm_client.exceptions import SpeechError
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from gateway.riva import riva_common_pb2, riva_tts_pb2, riva_tts_pb2_grpc
from support.telemetry.running_chain import running_chain

# Words that occur nowhere else, in what every caller here says.
MARK = "zyxomma quillbright"
SENTENCE = f"Hello, {MARK}."
LONG = f"The {MARK} leaves at seven in the morning and stops at every small station on the way to the city. " * 2

_UNARY = 3  # calls that speak and have no stream: two of Synthesize, and Riva's

LIMITED = "1-zyxommaquillbright-1"
TOKEN = "0-zyxommaquillbright-0"


@dataclass
class Observed:
    """What left the processes. Keys of logs and pages are services' names."""

    spans: list[tuple[str, object]] = field(default_factory=list)  # (service, OTLP span)
    metrics: list[tuple[str, object]] = field(default_factory=list)  # (service, OTLP metric)
    resources: dict[str, dict[str, str]] = field(default_factory=dict)
    logs: dict[str, str] = field(default_factory=dict)
    pages: dict[str, str] = field(default_factory=dict)  # what Prometheus would fetch
    trace_id: str = ""  # of a request that went well
    late_trace_id: str = ""  # of one whose deadline passed
    audit: str = ""  # the file of the audit trail
    panels: dict = field(default_factory=dict)  # what Prometheus gave, where there is one: see Prometheus.panels
    broken_off: int = 0  # streams that the caller left, or whose deadline passed


class Receiver(trace_service_pb2_grpc.TraceServiceServicer, metrics_service_pb2_grpc.MetricsServiceServicer):
    """An OTLP endpoint that keeps everything."""

    def __init__(self, observed: Observed):
        self._observed = observed

    async def Export(self, request, context):
        is_trace = isinstance(request, trace_service_pb2.ExportTraceServiceRequest)
        for each in request.resource_spans if is_trace else request.resource_metrics:
            names = {a.key: a.value.string_value for a in each.resource.attributes}
            service = names["service.name"].removeprefix("csm-")
            self._observed.resources[service] = names
            if is_trace:
                self._observed.spans += [(service, span) for scope in each.scope_spans for span in scope.spans]
            else:
                self._observed.metrics += [(service, m) for scope in each.scope_metrics for m in scope.metrics]
        if is_trace:
            return trace_service_pb2.ExportTraceServiceResponse()
        return metrics_service_pb2.ExportMetricsServiceResponse()


async def observe(
    folder: Path,
    settings: dict[str, str],
    watch: Callable[[dict[str, str]], AbstractAsyncContextManager] = lambda pages: nullcontext(),
) -> Observed:
    """Run the chain with these settings, talk to it in many ways, stop it.

    watch: given the URLs of all metrics, what is open while there is talk.
    """
    observed = Observed()
    server, receiver = grpc.aio.server(), Receiver(observed)
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(receiver, server)
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(receiver, server)
    endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    tokens = folder / "tokens.toml"
    limited = f'[limited]\ntoken = "{LIMITED}"\ncharacters_per_minute = {len(SENTENCE) - 1}\n'
    tokens.write_text(f'[observer]\ntoken = "{TOKEN}"\n{limited}')
    settings = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "CSM_TOKENS_FILE": str(tokens),
        "CSM_AUDIT_LOG": str(folder / "audit.jsonl"),
        "CSM_AUDIT_VERIFY": "1",
        **settings,
    }
    try:
        async with running_chain(folder, settings) as (gateway, urls):
            async with watch(urls):
                async with SpeechClient(gateway, token=TOKEN) as client:
                    await _talk(client, observed)
                await _talk_riva(gateway)
                for token in (None, LIMITED):
                    async with SpeechClient(gateway, token=token) as refused:
                        with pytest.raises(SpeechError):
                            await refused.synthesize(SENTENCE)
                for name, url in urls.items():
                    page = await asyncio.to_thread(urllib.request.urlopen, url)
                    observed.pages[name] = page.read().decode()
                await _searches_end(folder / "audit.jsonl", observed.pages["gateway"])
    finally:
        await server.stop(1)
    observed.audit = (folder / "audit.jsonl").read_text()
    observed.logs = {path.stem: path.read_text() for path in (folder / "logs").glob("*.log")}
    return observed


async def _talk(client: SpeechClient, observed: Observed) -> None:
    """Every method, every way for a call to end that a caller can bring about."""
    turn = ContextTurn(1, SENTENCE, _tone())
    stream = client.stream(SENTENCE, speaker=0, seed=6, max_audio_ms=3000)
    audio = b"".join([piece async for piece in stream])
    assert stream.started
    observed.trace_id = stream.started.trace_id
    assert len(audio) > 24_000
    for _ in range(2):  # the second time, the clip is known
        whole = await client.synthesize(SENTENCE, context=[turn], max_audio_ms=800, container="wav")
    await client.verify(whole.audio)
    await client.voices()
    for bad in ({"temperature": -1.0}, {"context": [ContextTurn(0, SENTENCE, b"RIFF" + MARK.encode())]}):
        with pytest.raises(SpeechError):
            await client.synthesize(SENTENCE, **bad)
    with pytest.raises(SpeechError):
        await client.synthesize("x" * 100_001)
    async with client.converse(max_audio_ms=800) as conversation:
        await conversation.say(SENTENCE)
        await conversation.end()
        assert [event async for event in conversation]
    left = client.stream(LONG)
    async for _ in left:
        break
    left.cancel()
    observed.broken_off += 1
    for timeout_s in (0.4, 0.8, 1.6, 3.2, 6.4):  # the first that is enough to begin is not enough to end
        late = client.stream(LONG, timeout_s=timeout_s)
        with pytest.raises(SpeechError):
            async for _ in late:
                pass
        observed.broken_off += 1
        if late.started is not None:
            observed.late_trace_id = late.started.trace_id
            break


async def _searches_end(audit: Path, page: str) -> None:
    """Each utterance that had audio has its record, once its mark was looked for."""
    told = re.search(r"^csm_stream_buffer_needed_seconds_count\S* (\S+)$", page, re.MULTILINE)
    assert told is not None
    streams = int(float(told[1]))
    async with asyncio.timeout(120):
        while len((await asyncio.to_thread(audit.read_text)).splitlines()) < streams + _UNARY:
            await asyncio.sleep(0.1)


async def _talk_riva(address: str) -> None:
    """The two methods of Riva's API that speak."""
    shown = (("authorization", f"Bearer {TOKEN}"),)
    request = riva_tts_pb2.SynthesizeSpeechRequest(
        text=SENTENCE, encoding=riva_common_pb2.LINEAR_PCM, custom_configuration={"max_audio_ms": "800"}
    )
    async with grpc.aio.insecure_channel(address) as channel:
        riva = riva_tts_pb2_grpc.RivaSpeechSynthesisStub(channel)
        assert (await riva.Synthesize(request, metadata=shown)).audio
        assert [piece async for piece in riva.SynthesizeOnline(iter([request]), metadata=shown)]


def _tone() -> bytes:
    """Half a second of sound as WAV."""
    held = io.BytesIO()
    with wave.open(held, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(24_000)
        file.writeframes((8000 * np.sin(np.arange(12_000) / 10)).astype("<i2").tobytes())
    return held.getvalue()


def records(log: str) -> list[dict]:
    """A JSON log's records."""
    return [json.loads(line) for line in log.splitlines() if line.startswith("{")]
