"""OpenAI's package speaks through a gateway's HTTP process: python examples/clients/openai_say.py [address] [file]"""

import sys

from openai import OpenAI


def main(address: str = "localhost:50055", file: str = "openai.mp3") -> None:
    client = OpenAI(base_url=f"http://{address}/v1", api_key="a token, where the gateway wants one")
    with client.audio.speech.with_streaming_response.create(
        model="csm", voice="heart", input="Hello there. How are you today?", response_format=file.rpartition(".")[2]
    ) as response:
        response.stream_to_file(file)
    print(f"{file}: written by openai")


main(*sys.argv[1:])
