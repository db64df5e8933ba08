"""The backbone service whole, as its process opens it, over a tiny bundle; and messages for it."""

from __future__ import annotations

import re
from contextlib import asynccontextmanager

from csm.backbone.v1 import backbone_pb2, backbone_pb2_grpc
from csm.common.v1 import common_pb2

from models.bundle import load_bundle
from services.backbone.__main__ import open_stage
from services.backbone.config import BackboneSettings
from services.backbone.model import build_model, init_random
from services.backbone.weights import save_sesame
from services.runtime.server import StageServer
from services.runtime.settings import read
from support.channels import open_channel

CODEBOOKS, BINS = 8, 1024

_SHAPES = """
[generator.backbone]
layers = 2
heads = 4
kv_heads = 2
dim = 64
intermediate_dim = 128
max_seq_len = %d

[generator.decoder]
layers = 2
heads = 4
kv_heads = 2
dim = 64
intermediate_dim = 128
max_seq_len = %d
"""


def write_bundle(folder, max_seq_len):
    """The noise bundle's toml with smaller transformers, and weights for it."""
    text = (load_bundle("noise").folder / "bundle.toml").read_text()
    shapes = _SHAPES % (max_seq_len, CODEBOOKS + 1)
    text, changed = re.subn(r"\n\[generator\.backbone\].*?(?=\n\[\[)", shapes, text, flags=re.DOTALL)
    assert changed == 1
    (folder / "bundle.toml").write_text(text)
    part = load_bundle(str(folder)).generator
    assert (part.backbone.dim, part.codebooks, part.audio_vocab_size) == (64, CODEBOOKS, BINS + 3)
    save_sesame(init_random(build_model(part), 3), folder / "generator")
    return folder


@asynccontextmanager
async def serving(folder, **overrides):
    settings = read(
        BackboneSettings, environ={}, **{"listen": "127.0.0.1:0", "model": str(folder), "slots": 3, **overrides}
    )
    async with open_stage(settings) as stage:
        server = StageServer(stage, settings)
        channel = open_channel(await server.start())
        try:
            yield backbone_pb2_grpc.BackboneServiceStub(channel)
        finally:
            await channel.close()
            await server.stop(0)


def frames_of(codes):
    return [common_pb2.Frame(codes=frame) for frame in codes]


def text(*ids):
    return backbone_pb2.PromptPart(text=backbone_pb2.TextPart(ids=ids))


def audio(*codes):
    return backbone_pb2.PromptPart(audio=backbone_pb2.AudioPart(frames=frames_of(codes)))


def request(*parts, sampling=None, **fields):
    return backbone_pb2.GenerateRequest(
        prompt=parts or [text(1, 2, 3)],
        sampling=common_pb2.SamplingOptions(**({"seed": 7} if sampling is None else sampling)),
        **fields,
    )


async def collect(call):
    """(started, chunks, finished) of a whole stream, its order checked."""
    messages = [message async for message in call]
    assert messages[0].WhichOneof("event") == "started"
    assert messages[-1].WhichOneof("event") == "finished"
    assert all(message.WhichOneof("event") == "chunk" for message in messages[1:-1])
    return messages[0].started, [message.chunk for message in messages[1:-1]], messages[-1].finished


def codes_of(chunks):
    return [list(frame.codes) for chunk in chunks for frame in chunk.frames]
