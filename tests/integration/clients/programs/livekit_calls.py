"""LiveKit's Riva and OpenAI plugins: python livekit_calls.py ADDRESS SCENARIO [JSON]. Prints what came as JSON."""

import asyncio
import json
import sys

from livekit.agents import APIConnectOptions, APIError
from livekit.plugins import nvidia, openai

CONNECT = APIConnectOptions(max_retry=0, timeout=60)


def tts_of(address, given):
    if given.get("http"):
        return openai.TTS(
            base_url=f"http://{address}/v1",
            api_key=given.get("token", "x"),
            voice=given.get("voice", "ash"),
            model=given.get("model", "gpt-4o-mini-tts"),
        )
    options = {"voice": given["voice"]} if "voice" in given else {}
    return nvidia.TTS(server=address, use_ssl=bool(given.get("tls")), api_key=given.get("token"), **options)


async def heard(stream, limit=None):
    sizes = []
    async for event in stream:
        sizes.append(len(bytes(event.frame.data)))
        if limit is not None and len(sizes) >= limit:
            break
    return sizes


async def stream(tts, given):
    """Words as a language model gives them."""
    speech = tts.stream(conn_options=CONNECT)
    for text in given.get("texts", ["Hello there."]):
        for word in text.split(" "):
            speech.push_text(f"{word} ")
    speech.end_input()
    sizes = await heard(speech, given.get("limit"))
    await speech.aclose()
    return {"sizes": sizes, "rate": tts.sample_rate}


async def synthesize(tts, given):
    speech = tts.synthesize(given.get("text", "Hello there."), conn_options=CONNECT)
    sizes = await heard(speech)
    await speech.aclose()
    return {"sizes": sizes, "rate": tts.sample_rate}


async def voices(tts, given):
    return {"voices": await asyncio.to_thread(tts.list_voices)}


async def main(address, scenario, options="{}"):
    given = json.loads(options)
    scenarios = {"stream": stream, "synthesize": synthesize, "voices": voices}
    try:
        result = await scenarios[scenario](tts_of(address, given), given)
    except APIError as error:
        result = {"error": str(error)}
    print(json.dumps(result), flush=True)


asyncio.run(main(*sys.argv[1:]))
