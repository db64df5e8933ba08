"""OpenAI's speech API with the standard library alone: python examples/speech_http.py [base URL] [file.mp3]"""

import json
import os
import sys
import urllib.request


def main(base_url: str = "http://localhost:50055/v1", file: str = "speech.mp3") -> None:
    body = {"model": "csm", "voice": "heart", "input": "Hello there. How are you today?", "response_format": "mp3"}
    headers = {"content-type": "application/json"}
    if token := os.environ.get("CSM_TOKEN"):
        headers["authorization"] = f"Bearer {token}"
    request = urllib.request.Request(f"{base_url}/audio/speech", json.dumps(body).encode(), headers)
    size = 0
    with urllib.request.urlopen(request, timeout=60) as answer, open(file, "wb") as out:
        while piece := answer.read1():  # as it is made; give it to your player
            out.write(piece)
            size += len(piece)
    print(f"{file}: {size} bytes of {answer.headers['content-type']}, trace {answer.headers['x-request-id']}")


main(*sys.argv[1:])
