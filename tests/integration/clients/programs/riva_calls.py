"""riva.client: python riva_calls.py ADDRESS SCENARIO [JSON]. Prints what came as JSON."""

import base64
import hashlib
import json
import sys
import threading

import grpc
import riva.client
from riva.client.proto import riva_tts_pb2


def service(address, *, root=None, token=None):
    metadata = [["authorization", f"Bearer {token}"]] if token else None
    auth = riva.client.Auth(ssl_root_cert=root, use_ssl=bool(root), uri=address, metadata_args=metadata)
    return riva.client.SpeechSynthesisService(auth)


def synthesize(tts, text="Hello there.", encoding="LINEAR_PCM", **options):
    """The whole audio."""
    answer = tts.synthesize(text, encoding=getattr(riva.client.AudioEncoding, encoding), **options)
    return {"audio": base64.b64encode(answer.audio).decode()}


def future(tts, text="Hello there.", **options):
    """The same, by a future."""
    return {"audio": base64.b64encode(tts.synthesize(text, future=True, **options).result().audio).decode()}


def online(tts, text="Hello there.", encoding="LINEAR_PCM", **options):
    """The sizes of the messages."""
    encoding = getattr(riva.client.AudioEncoding, encoding)
    pieces = [answer.audio for answer in tts.synthesize_online(text, encoding=encoding, **options)]
    return {"audio": base64.b64encode(b"".join(pieces)).decode(), "sizes": [len(piece) for piece in pieces]}


def cancel(tts, text="Hello there.", **options):
    """Leave after the first audio."""
    call = tts.synthesize_online(text, sample_rate_hz=24_000, **options)
    first = next(iter(call))
    call.cancel()
    return {"first": len(first.audio)}


def voices(tts):
    """As NVIDIA's sample program lists them."""
    config = tts.stub.GetRivaSynthesisConfig(riva_tts_pb2.RivaSynthesisConfigRequest())
    return {model.model_name: dict(model.parameters) for model in config.model_config}


def many(tts, callers=32, **options):
    """Callers at once, each with a seed; hashes of their audio."""
    results = [None] * callers

    def call(number):
        try:
            audio = b"".join(
                answer.audio
                for answer in tts.synthesize_online(
                    "Hello there.",
                    sample_rate_hz=24_000,
                    custom_configuration={"seed": str(number % 4)},
                    **options,
                )
            )
            results[number] = [len(audio), hashlib.sha256(audio).hexdigest()]
        except grpc.RpcError as error:
            results[number] = [error.code().name, error.details()]

    threads = [threading.Thread(target=call, args=(number,)) for number in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"results": results}


SCENARIOS = {one.__name__: one for one in (synthesize, future, online, cancel, voices, many)}


def main(address, scenario, options="{}"):
    given = json.loads(options)
    tts = service(address, root=given.pop("root", None), token=given.pop("token", None))
    try:
        result = SCENARIOS[scenario](tts, **given)
    except grpc.RpcError as error:
        result = {"code": error.code().name, "details": error.details()}
    print(json.dumps(result))


main(*sys.argv[1:])
