"""Audio as it is generated: python examples/stream.py [address]"""

import asyncio
import sys

from csm_client import SpeechClient


async def main(address: str = "localhost:50050") -> None:
    async with SpeechClient(address) as client:
        stream = client.stream("Hello there. How are you today?", speaker=0)
        samples = 0
        async for pcm in stream:  # 16-bit samples; give them to your player
            samples += len(pcm) // 2
    summary = stream.summary
    print(f"{samples} samples, first audio after {summary.time_to_first_audio.ToMilliseconds()} ms")
    for stage in summary.stages:
        print(f"  {stage.stage:<10} first output after {stage.first_output.ToMilliseconds()} ms")


asyncio.run(main(*sys.argv[1:]))
