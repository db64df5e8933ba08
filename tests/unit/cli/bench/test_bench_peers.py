"""`csm bench` against other interfaces: Riva's and OpenAI's, by servers that we did not write the client for."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
import pytest

from gateway.cli.bench import peers
from gateway.cli.bench.plan import Plan
from gateway.cli.bench.record import Record
from gateway.riva import riva_tts_pb2, riva_tts_pb2_grpc
from support.fake_speech import tone

PIECES = [b"\0" * 4801, b"\0" * 4799 + tone(1200), tone(600)]  # 0.2 s of silence, cut within a sample
SECONDS = (9600 + 2400 + 1200) / 2 / 24_000


class Clock:
    now_s = 0.0

    def __call__(self):
        self.now_s += 0.01
        return self.now_s


@pytest.fixture
async def riva():
    seen = []

    class Service(riva_tts_pb2_grpc.RivaSpeechSynthesisServicer):
        async def SynthesizeOnline(self, request_iterator, context):
            async for request in request_iterator:
                seen.append((request, dict(context.invocation_metadata())))
                if request.text == "refuse":
                    await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
                for piece in PIECES:
                    yield riva_tts_pb2.SynthesizeSpeechResponse(audio=piece)

    server = grpc.aio.server()
    riva_tts_pb2_grpc.add_RivaSpeechSynthesisServicer_to_server(Service(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    peer = peers.RivaPeer(f"127.0.0.1:{port}", None, "secret")
    yield peer, seen
    await peer.close()
    await server.stop(None)


@pytest.fixture
async def openai():
    seen = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            seen.append((self.path, body, self.headers["authorization"]))
            if body["input"] == "refuse":
                self.send_response(429)
                self.send_header("retry-after", "7")
                self.send_header("content-length", "4")
                self.end_headers()
                self.wfile.write(b"full")
                return
            self.send_response(200)
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            for piece in [*PIECES, b""]:
                self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    peer = peers.OpenAIPeer(f"http://127.0.0.1:{server.server_port}", "secret")
    yield peer, seen
    await peer.close()
    server.shutdown()
    server.server_close()


async def spoken(peer, plan, text="Hello."):
    record = Record(0.0, 0.0)
    await peers.speak(peer, plan, text, record, Clock())
    return record


def as_expected(record):
    assert (record.status, record.bytes) == ("OK", round(SECONDS * 48_000))
    assert record.audio_s == pytest.approx(SECONDS)
    # Who plays at once hears 0.2 s of silence first.
    assert record.first_audible_s == pytest.approx(record.first_audio_s + 0.2, abs=0.001)


async def test_riva_is_asked_as_its_clients_ask(riva):
    peer, seen = riva
    as_expected(await spoken(peer, Plan(peer_voice="English-US.Female-1", audio_s=2.0)))
    [(request, metadata)] = seen
    assert (request.text, request.voice_name, request.sample_rate_hz) == ("Hello.", "English-US.Female-1", 24_000)
    assert request.custom_configuration["max_audio_ms"] == "2000" and metadata["authorization"] == "Bearer secret"
    refused = await spoken(peer, Plan(), "refuse")
    assert refused.status == "RESOURCE_EXHAUSTED" and "full" in refused.problem


async def test_openai_is_asked_as_its_package_asks(openai):
    peer, seen = openai
    as_expected(await spoken(peer, Plan(peer_voice="nova")))
    [(path, body, authorization)] = seen
    assert (path, authorization) == ("/v1/audio/speech", "Bearer secret")
    assert body == {"model": "tts-1", "input": "Hello.", "voice": "nova", "response_format": "pcm"}
    refused = await spoken(peer, Plan(), "refuse")
    assert (refused.status, refused.problem, refused.retry_after_s) == ("HTTP_429", "full", 7.0)


async def test_a_server_that_is_gone_is_an_error_of_the_record():
    gone = peers.OpenAIPeer("http://127.0.0.1:1", None)
    record = await spoken(gone, Plan())
    assert record.status == "ConnectError" and record.first_audio_s is None
    await gone.close()
