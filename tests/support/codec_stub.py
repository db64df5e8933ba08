"""A codec service without a codec, for tests of what every server shares."""

from __future__ import annotations

import asyncio
import time

from csm.codec.v1 import codec_pb2, codec_pb2_grpc

from services.runtime.request_reader import limit_idle

SERVICE = "csm.codec.v1.CodecService"


class Codec(codec_pb2_grpc.CodecServiceServicer):
    """Does what the test says; `closed` is set when a Decode call has run its finally block."""

    def __init__(self):
        self.error = None
        self.live = True
        self.asked = 0
        self.idle_from_s = None  # seconds from now; None: a caller may be silent for as long as it likes
        self.closed = asyncio.Event()

    async def GetModelInfo(self, request, context):
        self.asked += 1
        return codec_pb2.GetModelInfoResponse(slots_capacity=3)

    async def Decode(self, request_iterator, context):
        try:
            async for _ in request_iterator:
                if self.error is not None:
                    raise self.error
                if self.idle_from_s is not None:
                    limit_idle(request_iterator, time.monotonic() + self.idle_from_s)
                yield codec_pb2.DecodeResponse(finished=codec_pb2.DecodeFinished(frames=1))
            yield codec_pb2.DecodeResponse(finished=codec_pb2.DecodeFinished(frames=0))
        finally:
            self.closed.set()
