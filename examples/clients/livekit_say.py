"""LiveKit speaks through a gateway: python examples/clients/livekit_say.py [address] [file]"""

import asyncio
import sys
import wave

from livekit.plugins import nvidia


async def main(address: str = "localhost:50050", file: str = "livekit.wav") -> None:
    tts = nvidia.TTS(server=address, use_ssl=False, voice="heart")
    stream = tts.stream()
    for word in "Hello there. How are you today?".split(" "):  # as a language model gives it
        stream.push_text(f"{word} ")
    stream.end_input()
    audio = b""
    async for event in stream:
        audio += bytes(event.frame.data)
    await stream.aclose()
    with wave.open(file, "wb") as wav:
        wav.setparams((1, 2, tts.sample_rate, 0, "NONE", ""))
        wav.writeframes(audio)
    print(f"{file}: {len(audio) / 2 / tts.sample_rate:.2f} s by LiveKit")


asyncio.run(main(*sys.argv[1:]))
