"""First audio through each client beside the plain one, in pairs: python first_audio.py GATEWAY HTTP PAIRS [NAME,…]

The last line is JSON.
`Riva's RPC` and `HTTP` have no client: a stub and a socket. What a client takes beyond them is its own.
"""

import asyncio
import importlib.util
import json
import random
import statistics
import sys
import time

import grpc
import riva.client
from csm_client import SpeechClient
from riva.client.proto import riva_tts_pb2, riva_tts_pb2_grpc

TEXT, VOICE = "Yes, that would be great.", "heart"
PAUSE_S = 0.05  # so that no request meets the end of the one before


class Plain:
    """csm_client, asked over the same event loop."""

    def __init__(self, address):
        self._client = SpeechClient(address, insecure=True)

    async def first(self):
        began, first = time.perf_counter(), 0.0
        async for _ in self._client.stream(TEXT, voice=VOICE):
            first = first or time.perf_counter() - began
        return first


class RivaRpc:
    """A stub on the same event loop."""

    def __init__(self, address):
        self._stub = riva_tts_pb2_grpc.RivaSpeechSynthesisStub(grpc.aio.insecure_channel(address))

    async def first(self):
        began, first = time.perf_counter(), 0.0
        request = riva_tts_pb2.SynthesizeSpeechRequest(
            text=TEXT, voice_name=VOICE, language_code="en-US", encoding=1, sample_rate_hz=24_000
        )
        async for _ in self._stub.SynthesizeOnline(iter([request])):
            first = first or time.perf_counter() - began
        return first


class Http:
    """A socket that stays, as clients keep theirs."""

    def __init__(self, address):
        self._host, self._port = address.rsplit(":", 1)
        self._streams = None

    async def first(self):
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, int(self._port))
        reader, writer = self._streams
        began, first = time.perf_counter(), 0.0
        body = json.dumps({"model": "csm", "voice": VOICE, "input": TEXT, "response_format": "pcm"}).encode()
        head = f"POST /v1/audio/speech HTTP/1.1\r\nhost: {self._host}\r\ncontent-type: application/json\r\n"
        writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        status = await reader.readuntil(b"\r\n\r\n")
        assert status.startswith(b"HTTP/1.1 200"), status
        while size := int(await reader.readline(), 16):
            await reader.readexactly(size + 2)
            first = first or time.perf_counter() - began
        await reader.readline()
        return first


class Riva:
    """riva.client, which blocks."""

    def __init__(self, address):
        self._tts = riva.client.SpeechSynthesisService(riva.client.Auth(uri=address, use_ssl=False))

    async def first(self):
        return await asyncio.to_thread(self._run)

    def _run(self):
        began, first = time.perf_counter(), 0.0
        for _ in self._tts.synthesize_online(TEXT, VOICE, sample_rate_hz=24_000):
            first = first or time.perf_counter() - began
        return first


class OpenAI:
    """Over HTTP."""

    def __init__(self, address):
        import openai

        self._client = openai.AsyncOpenAI(base_url=f"http://{address}/v1", api_key="x", max_retries=0)

    async def first(self):
        began, first = time.perf_counter(), 0.0
        async with self._client.audio.speech.with_streaming_response.create(
            model="csm", voice=VOICE, input=TEXT, response_format="pcm"
        ) as answer:
            async for _ in answer.iter_bytes():
                first = first or time.perf_counter() - began
        return first


async def main(address, http, pairs, names=""):
    plain = Plain(address)
    others = {"Riva's RPC": RivaRpc(address), "HTTP": Http(http), "riva.client": Riva(address)}
    if importlib.util.find_spec("openai") is not None:
        others["openai"] = OpenAI(http)
    if importlib.util.find_spec("pipecat") is not None:
        from first_audio_frameworks import LiveKit, Pipecat

        others |= {"LiveKit": LiveKit(address, TEXT, VOICE), "Pipecat": Pipecat(address, TEXT, VOICE)}
    result = {}
    for name, client in others.items():
        if names and name not in names.split(","):
            continue
        rows = []
        for number in range(int(pairs) + 1):
            order = (plain, client) if number % 2 else (client, plain)
            took = {}
            for one in order:
                took[one] = await one.first()
                await asyncio.sleep(PAUSE_S)
            if number:  # the first opens connections
                rows.append((took[plain], took[client]))
        over = [client_s - plain_s for plain_s, client_s in rows]
        medians = sorted(statistics.median(random.choices(over, k=len(over))) for _ in range(2_000))
        result[name] = {
            "plain_ms": 1000 * statistics.median(row[0] for row in rows),
            "client_ms": 1000 * statistics.median(row[1] for row in rows),
            "over_ms": 1000 * statistics.median(over),
            "from_ms": 1000 * medians[50],
            "to_ms": 1000 * medians[1_950],
        }
    if "Pipecat" in result:
        await others["Pipecat"].end()
    print(json.dumps(result), flush=True)


asyncio.run(main(*sys.argv[1:]))
