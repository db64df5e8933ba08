"""A server with two small services, and what tests of hostile callers ask of it."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from typing import Any

import grpc
from csm.codec.v1 import codec_pb2_grpc
from csm.speech.v1 import speech_pb2, speech_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.runtime.server import Stage, StageServer
from services.runtime.settings import ServerSettings, read
from support.codec_stub import SERVICE, Codec

MIB = 1024 * 1024
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
WATCH, CHECK = "/grpc.health.v1.Health/Watch", "/grpc.health.v1.Health/Check"
SYNTHESIZE = "/csm.speech.v1.SpeechService/Synthesize"
READINESS = health_pb2.HealthCheckRequest(service="readiness")


class Speech(speech_pb2_grpc.SpeechServiceServicer):
    """Answers at once with the number of context segments."""

    def __init__(self):
        self.asked = 0

    async def Synthesize(self, request, context):
        self.asked += 1
        return speech_pb2.SynthesizeResponse(trace_id=str(len(request.utterance.context)))


@asynccontextmanager
async def hardened_server(**settings):
    """A running StageServer with `address`, `codec` and `speech`."""
    codec, speech = Codec(), Speech()  # type: ignore[abstract]  # it has the call that the tests make

    def register(server):
        codec_pb2_grpc.add_CodecServiceServicer_to_server(codec, server)
        speech_pb2_grpc.add_SpeechServiceServicer_to_server(speech, server)

    server: Any = StageServer(
        Stage(SERVICE, register, is_live=lambda: codec.live), read(ServerSettings, {}, **settings)
    )
    server.address = await server.start()
    server.codec, server.speech = codec, speech
    try:
        yield server
    finally:
        await server.stop(0)


def rss_mib():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MIB


async def health_of(address, name="readiness"):
    async with grpc.aio.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        request = health_pb2.HealthCheckRequest(service=name)
        # A server may still count connections that have just been closed.
        return (await check(request, timeout=5, wait_for_ready=True)).status
