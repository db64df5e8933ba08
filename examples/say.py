"""A whole utterance into a WAV file: python examples/say.py [address] [file]"""

import asyncio
import sys
from pathlib import Path

from csm_client import SpeechClient


async def main(address: str = "localhost:50050", file: str = "say.wav") -> None:
    async with SpeechClient(address) as client:
        response = await client.synthesize("Hello there. How are you today?", speaker=0, container="wav")
    Path(file).write_bytes(response.audio)
    print(
        f"{file}: {response.summary.audio_duration.ToTimedelta().total_seconds():.2f} s, seed {response.summary.seed}"
    )


asyncio.run(main(*sys.argv[1:]))
