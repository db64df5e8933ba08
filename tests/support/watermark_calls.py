"""The watermark service on a loopback port, what it is asked, and what its answers hold."""

from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
from csm.common.v1 import common_pb2
from csm.watermark.v1 import watermark_pb2, watermark_pb2_grpc
from google.rpc import error_details_pb2

import models.bundle
from services.runtime.errors import rich_details
from services.runtime.server import StageServer
from services.runtime.settings import read
from services.watermark.__main__ import open_stage
from services.watermark.config import WatermarkSettings

KEY = bytes.fromhex("0b6ed1952c")
F32, S16 = common_pb2.AUDIO_ENCODING_PCM_F32LE, common_pb2.AUDIO_ENCODING_PCM_S16LE


def write_bundle(folder, bundle_id, write_nets):
    """The embedded bundle's table under another id, with other watermark nets."""
    text = (Path(models.bundle.__file__).parent / "embedded" / "bundle.toml").read_text()
    table = text.replace('id = "embedded"', f'id = "{bundle_id}"').replace("trained = false", "trained = true")
    assert f'id = "{bundle_id}"' in table
    folder.mkdir(exist_ok=True)
    (folder / "bundle.toml").write_text(table)
    write_nets(folder / "watermark")
    return folder


@asynccontextmanager
async def serving(bundle, **overrides):
    """A stub of a fresh service."""
    values = {
        "listen": "127.0.0.1:0",
        "model": str(bundle),
        "key": KEY.hex(),
        "max_detect_s": 5.0,
    } | overrides
    settings = read(WatermarkSettings, environ={}, **values)
    async with open_stage(settings) as stage:
        server = StageServer(stage, settings)
        address = await server.start()
        try:
            async with grpc.aio.insecure_channel(address) as channel:
                yield watermark_pb2_grpc.WatermarkServiceStub(channel)
        finally:
            await server.stop(0)


def start(encoding=F32, **fields):
    form = common_pb2.AudioFormat(encoding=encoding, **fields)
    return watermark_pb2.EmbedRequest(start=watermark_pb2.EmbedStart(format=form))


def audio(samples):
    data = samples if isinstance(samples, bytes) else samples.tobytes()
    return watermark_pb2.EmbedRequest(audio=watermark_pb2.EmbedAudio(data=data))


def raw(samples, rate_hz=24000, **fields):
    form = common_pb2.AudioFormat(**({"encoding": F32, "sample_rate_hz": rate_hz} | fields))
    return common_pb2.AudioClip(raw=common_pb2.RawAudio(format=form, data=np.asarray(samples, "<f4").tobytes()))


async def embed(stub, requests):
    """(started, bytes of all audio, finished)."""
    responses = [response async for response in stub.Embed(iter(requests), timeout=30)]
    kinds = [response.WhichOneof("event") for response in responses]
    assert kinds == ["started", *["audio"] * (len(kinds) - 2), "finished"]
    return responses[0].started, b"".join(r.audio.data for r in responses[1:-1]), responses[-1].finished


async def refusal(call):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        if isinstance(call, grpc.aio.UnaryUnaryCall):
            await call
        else:
            async for response in call:
                assert response.WhichOneof("event") != "audio"
    return caught.value


def field_of(error):
    [bad] = [d for d in rich_details(error) if isinstance(d, error_details_pb2.BadRequest)]
    return bad.field_violations[0].field
