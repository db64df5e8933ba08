"""WAV files that have tripped readers, wherever a file is taken: verification, context, named voices. Each is read, or
refused in a line that says why."""

import numpy as np
import pytest
import pytest_asyncio
from csm_client import ContextTurn, SpeechClient
from csm_client.exceptions import InvalidRequest

from support.processes import Processes
from support.wav_files import wav_files

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]
TEXT = "Your table is ready, and the soup of the day is on the menu."
NAMES = list(wav_files(np.ones(24_000) / 2, 24_000))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(tmp_path_factory):
    settings = {"CSM_VOICES_URL": str(tmp_path_factory.mktemp("voices"))}
    async with (
        Processes(tmp_path_factory.mktemp("logs"), settings) as chain,
        SpeechClient(chain.addresses["gateway"]) as client,
    ):
        yield client


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def files(client):
    speech = await client.synthesize(TEXT, seed=5, timeout_s=120)
    assert speech.summary.audio_duration.ToNanoseconds() > 2e9
    return wav_files(np.frombuffer(speech.audio, "<i2") / 32768, speech.format.sample_rate_hz)


@pytest.mark.parametrize("name", NAMES)
async def test_the_mark_is_found(client, files, name):
    if name == "two_minutes_and_a_second":
        with pytest.raises(InvalidRequest, match=r"lasts 121\.00 s, at most 120 s"):
            await client.verify(files[name])
    else:
        assert (await client.verify(files[name], timeout_s=120)).found


@pytest.mark.parametrize("name", NAMES)
async def test_the_mark_is_found_in_pieces(client, files, name):
    async def pieces():
        for start in range(0, len(files[name]), 65_537):
            yield files[name][start : start + 65_537]

    assert (await client.verify_stream(pieces(), timeout_s=300)).found


@pytest.mark.parametrize("name", NAMES)
async def test_context_is_heard_or_refused(client, files, name):
    context = [ContextTurn(0, TEXT, files[name])]
    if name == "two_minutes_and_a_second":
        with pytest.raises(InvalidRequest, match=r"lasts 121\.00 s, at most 120 s"):
            await client.synthesize("Yes.", context=context, max_audio_ms=160)
    else:
        assert (await client.synthesize("Yes.", context=context, max_audio_ms=160, timeout_s=120)).audio


@pytest.mark.parametrize("name", NAMES)
async def test_a_named_voice_is_made_or_refused(client, files, name):
    async def create():
        return await client.named_voices.create(
            name.replace("_", "-"), transcript=TEXT, audio=files[name], consent_statement="I agree.", timeout_s=120
        )

    if name == "two_minutes_and_a_second":
        with pytest.raises(InvalidRequest, match=r"lasts 121\.00 s, at most 30 s"):
            await create()
    else:
        assert (await create()).name == name.replace("_", "-")
