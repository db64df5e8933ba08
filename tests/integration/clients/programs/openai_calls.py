"""OpenAI's package: python openai_calls.py ADDRESS SCENARIO [JSON]. Prints what came as JSON."""

import base64
import json
import sys

import openai


def speech(client, **options):
    """A whole file."""
    given = {"model": "gpt-4o-mini-tts", "voice": "alloy", "input": "Hello there."} | options
    answer = client.audio.speech.create(**given)
    content_type = answer.response.headers["content-type"]
    return {"audio": base64.b64encode(answer.content).decode(), "content_type": content_type}


def stream(client, leave_after=None, **options):
    """Pieces as they come; leave_after: bytes after which the caller goes."""
    given = {"model": "gpt-4o-mini-tts", "voice": "alloy", "input": "Hello there.", "response_format": "pcm"} | options
    sizes = []
    with client.audio.speech.with_streaming_response.create(**given) as answer:
        for piece in answer.iter_bytes(4096):
            sizes.append(len(piece))
            if leave_after is not None and sum(sizes) >= leave_after:
                break
    return {"sizes": sizes}


def main(address, scenario, options="{}"):
    given = json.loads(options)
    client = openai.OpenAI(base_url=f"http://{address}/v1", api_key=given.pop("token", "x"), max_retries=0)
    try:
        result = {"speech": speech, "stream": stream}[scenario](client, **given)
    except openai.APIStatusError as error:
        result = {"status": error.status_code, "body": error.body}
    print(json.dumps(result))


main(*sys.argv[1:])
