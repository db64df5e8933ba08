"""First audio through each client beside the plain one, in pairs: python first_audio.py GATEWAY HTTP PAIRS. JSON."""

import asyncio
import importlib.util
import json
import statistics
import sys
import time

import riva.client
from csm_client import SpeechClient

TEXT, VOICE = "Yes, that would be great.", "heart"


class Plain:
    """csm_client, asked over the same event loop."""

    def __init__(self, address):
        self._client = SpeechClient(address, insecure=True)

    async def first(self):
        began, first = time.perf_counter(), 0.0
        async for _ in self._client.stream(TEXT, voice=VOICE):
            first = first or time.perf_counter() - began
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


async def main(address, http, pairs):
    plain = Plain(address)
    others = {"riva.client": Riva(address)}
    if importlib.util.find_spec("openai") is not None:
        others["openai"] = OpenAI(http)
    if importlib.util.find_spec("pipecat") is not None:
        from first_audio_frameworks import LiveKit, Pipecat

        others |= {"LiveKit": LiveKit(address, TEXT, VOICE), "Pipecat": Pipecat(address, TEXT, VOICE)}
    result = {}
    for name, client in others.items():
        rows = []
        for number in range(int(pairs) + 1):
            order = (plain, client) if number % 2 else (client, plain)
            took = {one: await one.first() for one in order}
            if number:  # the first opens connections
                rows.append((took[plain], took[client]))
        result[name] = {
            "plain_ms": 1000 * statistics.median(row[0] for row in rows),
            "client_ms": 1000 * statistics.median(row[1] for row in rows),
            "over_ms": 1000 * statistics.median(row[1] - row[0] for row in rows),
        }
    if "Pipecat" in others:
        await others["Pipecat"].end()
    print(json.dumps(result), flush=True)


asyncio.run(main(*sys.argv[1:]))
