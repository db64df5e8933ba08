"""Two turns: the second speaker has heard the first. python examples/context.py [address] [file]"""

import asyncio
import sys
from pathlib import Path

from csm_client import ContextTurn, SpeechClient


async def main(address: str = "localhost:50050", file: str = "answer.wav") -> None:
    question = "Do you know what time it is?"
    async with SpeechClient(address) as client:
        asked = await client.synthesize(question, speaker=0, container="wav")
        context = [ContextTurn(speaker=0, text=question, audio=asked.audio)]
        answer = await client.synthesize("It is almost noon.", speaker=1, context=context, container="wav")
    Path(file).write_bytes(answer.audio)
    print(f"{file}: the prompt had {answer.summary.prompt_tokens} tokens, the first one {asked.summary.prompt_tokens}")


asyncio.run(main(*sys.argv[1:]))
