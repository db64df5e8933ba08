"""Which messages are parsed on the event loop: small ones, and larger ones that are hardly more than audio."""

import threading

import pytest
from csm.codec.v1 import codec_pb2
from csm.common.v1 import common_pb2
from csm.watermark.v1 import watermark_pb2

from services.runtime.errors import InvalidArgument
from services.runtime.request_reader import MIB, RequestLimits


def audio(size):
    return watermark_pb2.EmbedRequest(audio={"data": bytes(size)})


def frames(count, codes):
    return codec_pb2.DecodeRequest(frames={"frames": [common_pb2.Frame(codes=codes)] * count})


@pytest.mark.parametrize(
    ("message", "is_inline"),
    [
        (audio(1000), True),
        (audio(500_000), True),
        (audio(2 * MIB), False),
        (frames(6_000, [2047] * 32), False),  # many fields
        (frames(1, [1] * 200_000), False),  # many numbers
        (frames(64, [2047] * 32), True),
    ],
)
async def test_where_a_message_is_parsed(message, is_inline):
    threads = []

    class Recorder:
        DESCRIPTOR = message.DESCRIPTOR

        def parse(self, data):
            threads.append(threading.current_thread())
            return type(message).FromString(data)

    limits = RequestLimits(timeout_s=1, idle_s=1, memory_bytes=64 * MIB, max_message_bytes=64 * MIB)
    assert await limits.parse(message.SerializeToString(), Recorder().parse) == message
    assert (threads == [threading.main_thread()]) is is_inline


async def test_what_is_cut_off_is_refused_wherever_it_is_parsed():
    limits = RequestLimits(timeout_s=1, idle_s=1, memory_bytes=64 * MIB, max_message_bytes=64 * MIB)
    for size in (1000, 500_000, 2 * MIB):
        with pytest.raises(InvalidArgument, match="truncated or corrupt"):
            await limits.parse(audio(size).SerializeToString()[:-1], watermark_pb2.EmbedRequest.FromString)
