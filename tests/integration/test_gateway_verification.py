"""VerifyWatermarkStream through the gateway, with a fake watermark stage behind it."""

import grpc
import pytest
from csm.speech.v1 import speech_pb2


@pytest.fixture
async def chain(open_chain):
    return await open_chain()


async def messages(*pieces, start=True):
    if start:
        yield speech_pb2.VerifyWatermarkStreamRequest(start=speech_pb2.VerifyWatermarkStart())
    for piece in pieces:
        yield speech_pb2.VerifyWatermarkStreamRequest(wav=piece)


@pytest.mark.parametrize("end", [b"marked", b"plain!"])
async def test_a_file_goes_through_in_pieces_and_progress_comes_back(chain, end):
    call = chain.speech.VerifyWatermarkStream(messages(b"RIFF", b"", b"x" * 1000, end), timeout=20)
    started, progress, last = [response async for response in call]
    assert started.HasField("started") and progress.progress.searched.ToMilliseconds() == 1010
    assert last.finished.found == (end == b"marked") and last.finished.detectable


async def test_the_first_message_must_be_start(chain):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        [response async for response in chain.speech.VerifyWatermarkStream(messages(b"RIFF", start=False), timeout=20)]
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_second_start_ends_the_search(chain):
    async def twice():
        async for message in messages():
            yield message
            yield message

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        [response async for response in chain.speech.VerifyWatermarkStream(twice(), timeout=20)]
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
