"""The synchronous client against the same server as the async one: same requests, same errors, leaving cancels."""

import asyncio

import pytest
from csm_client import ContextTurn, SyncSpeechClient, SyncSpeechStream, exceptions

from support.fake_speech import FRAME, serving, tone


async def in_thread(function, *args):
    return await asyncio.to_thread(function, *args)


@pytest.fixture
async def served():
    async with serving() as (fake, address):
        with SyncSpeechClient(address) as client:
            yield fake, client


def heard(stream: SyncSpeechStream) -> bytes:
    return b"".join(stream)


async def idle(fake):
    await asyncio.wait_for(fake.idle.wait(), 5)
    assert fake.running == 0


async def test_a_stream_and_a_whole_utterance(served):
    fake, client = served
    options = {"speaker": 3, "context": [ContextTurn(1, "a", b"RIFF")], "seed": 2**63, "sample_rate_hz": 16_000}
    stream = client.stream("hello", **options)
    assert await in_thread(heard, stream) == 5 * tone(FRAME)
    assert stream.started.trace_id == "ab" * 16 and stream.summary.frames == 5
    assert (await in_thread(lambda: client.synthesize("hello", **options))).audio == tone(5 * FRAME)
    first, second = fake.requests
    assert first.utterance == second.utterance and first.utterance.sampling.seed == 2**63
    with pytest.raises(RuntimeError, match="only once"):
        heard(stream)


async def test_voices_verify_and_readiness(served):
    _, client = served
    await in_thread(client.wait_ready, 5.0)
    assert (await in_thread(client.voices)).bundle.bundle_id == "fake"
    assert (await in_thread(client.verify, b"RIFF")).found
    assert (await in_thread(client.verify_stream, [b"RI", b"FF"])).found


async def test_leaving_the_loop_cancels(served):
    fake, client = served

    def leave():
        for _ in client.stream("endless"):
            break

    await in_thread(leave)
    await idle(fake)


async def test_with_cancels_though_the_iterator_is_kept(served):
    fake, client = served

    def leave():
        with client.stream("endless") as stream:
            iterator = iter(stream)
            next(iterator)
        return iterator

    iterator = await in_thread(leave)
    await idle(fake)
    with pytest.raises(exceptions.SpeechError):
        list(iterator)


@pytest.mark.parametrize("unary", [False, True])
@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", exceptions.InvalidRequest),
        ("overloaded", exceptions.Overloaded),
        ("unavailable", exceptions.Unavailable),
        ("crash", exceptions.ServerFault),
    ],
)
async def test_statuses_become_exceptions(served, text, kind, unary):
    _, client = served
    with pytest.raises(exceptions.SpeechError) as caught:
        await in_thread(client.synthesize if unary else lambda text: heard(client.stream(text)), text)
    assert type(caught.value) is kind
    if kind is exceptions.InvalidRequest:
        assert caught.value.violations == (("utterance.text", "must have 1 to 4000 characters, not 0"),)
    if kind is exceptions.Overloaded:
        assert caught.value.retry_after_s == 1.5


@pytest.mark.parametrize("text", ["no start", "no summary"])
async def test_a_stream_that_breaks_the_contract_is_a_fault(served, text):
    with pytest.raises(exceptions.ServerFault):
        await in_thread(heard, served[1].stream(text))


async def test_a_deadline(served):
    fake, client = served
    with pytest.raises(exceptions.DeadlineExceeded):
        await in_thread(heard, client.stream("hang", timeout_s=0.3))
    await idle(fake)


def test_nothing_there():
    with SyncSpeechClient("127.0.0.1:1") as client:
        with pytest.raises(exceptions.Unavailable):
            client.voices()
        with pytest.raises(exceptions.Unavailable, match="nothing answers"):
            client.wait_ready(timeout_s=0.3)


def test_an_unknown_option_is_named():
    with SyncSpeechClient("127.0.0.1:1") as client, pytest.raises(TypeError, match="pitch"):
        client.stream("hello", pitch=2)
