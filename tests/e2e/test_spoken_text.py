"""Texts as people and language models write them, through the real gateway: said as wanted, or refused with the reason."""

import numpy as np
import pytest
import pytest_asyncio
from csm.common.v1 import common_pb2
from csm_client import ContextTurn, SpeechClient
from csm_client.exceptions import InvalidRequest

from services.runtime.audio import wav_bytes
from support.processes import Processes

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(tmp_path_factory):
    async with Processes(tmp_path_factory.mktemp("logs")) as chain, SpeechClient(chain.addresses["gateway"]) as client:
        yield client


LONG_TEXT = (
    "The train to the city leaves at seven in the morning and stops at every small station on the way. "
    "My sister told me that the garden needs water, and that the letters are on the table in the kitchen. "
    "Please remember to close the window before you go, because the evening will be cold and full of rain. "
)
SAID = [
    ("I love this song \U0001f602 so much.", "I love this song so much."),
    ("See you tomorrow! \U0001f44b", "See you tomorrow!"),
    ("\ufeffYour table is ready.", "Your table is ready."),
    ("Your table\u0007 is\u001b[31m ready.", "Your table is ready."),
    ("Y\u0337o\u0335u\u0336r\u0334 t\u0335a\u0336b\u0337l\u0335e\u0336 is ready.", "Your table is ready."),
    ("Sales rose by 12.5%.", "Sales rose by twelve point five percent."),
    ("It is 25\u00b0C outside.", "It is twenty five degrees Celsius outside."),
    ("Add \u00bd cup of sugar.", "Add one half cup of sugar."),
    ("It costs \u20ac25 per month.", "It costs twenty five euros per month."),
    ("The ticket is \u00a340.", "The ticket is forty pounds."),
    ("The deadline is 2025-03-14.", "The deadline is March fourteenth, twenty twenty five."),
    ("She was born on 03/14/1992.", "She was born on March fourteenth, nineteen ninety two."),
    ("The NASA and FBI offices are closed.", "The NASA and F B I offices are closed."),
    ("Chapter IV begins here.", "Chapter four begins here."),
    ("Go to www.example.com for more.", "Go to W W W dot example dot com for more."),
    ('<speak>Hello <break time="500ms"/> world.</speak>', "Hello. world."),
    ("<p>Hello <b>world</b></p>", "Hello world."),
    ("OK!", "okay!"),
    ("<|end_of_text|><|begin_of_text|>Your table is ready now.", "Your table is ready now."),
    ("[1]Your table is ready now.", "one, Your table is ready now."),
]


@pytest.mark.parametrize("text, words", SAID, ids=[ascii(text) for text, _ in SAID])
async def test_what_is_said(client, text, words):
    response = await client.synthesize(text, seed=1, max_audio_ms=160)
    assert response.summary.spoken_text == words
    assert response.audio


@pytest.mark.parametrize(
    "text, words",
    [
        (".", "nothing (to speak|speakable)"),
        ("...", "nothing (to speak|speakable)"),
        ("***", "nothing (to speak|speakable)"),
        ('"', "nothing (to speak|speakable)"),
        ("\u200b\u200b", "nothing (to speak|speakable)"),
        ("\U0001f602\U0001f602", "nothing (to speak|speakable)"),
        ("\u4f60\u597d\uff0c\u4eca\u5929\u5929\u6c14\u5f88\u597d\u3002", "Han script .*the voices speak en"),
        ("\u0645\u0631\u062d\u0628\u0627 \u0643\u064a\u0641 \u062d\u0627\u0644\u0643", "Arabic script .*the voices speak en"),
    ],
    ids=ascii,
)  # fmt: skip
@pytest.mark.parametrize("text_normalization", [None, False])
async def test_what_the_voices_cannot_say_is_refused(client, text, words, text_normalization):
    with pytest.raises(InvalidRequest, match=words) as caught:
        await client.synthesize(text, text_normalization=text_normalization)
    assert [field for field, _ in caught.value.violations] == ["utterance.text"]


@pytest.mark.parametrize("speaker", [4, 99, 2**31 - 1])
async def test_a_speaker_that_the_bundle_does_not_have_is_refused_with_the_list(client, speaker):
    with pytest.raises(InvalidRequest, match=r"0 \(heart\), 1 \(michael\), 2 \(emma\), 3 \(george\); not") as caught:
        await client.synthesize("The weather is lovely today.", speaker=speaker)
    assert [field for field, _ in caught.value.violations] == ["utterance.speaker"]


async def test_the_context_is_read_in_the_same_way(client):
    silence = wav_bytes(np.zeros(24_000, np.float32), 24_000)
    response = await client.synthesize("Yes.", context=[ContextTurn(1, "It is 5 %.", silence)], max_audio_ms=160)
    bare = await client.synthesize("Yes.", context=[ContextTurn(1, "It is five percent.", silence)], max_audio_ms=160)
    assert response.summary.prompt_tokens == bare.summary.prompt_tokens
    with pytest.raises(InvalidRequest, match=r"nothing (to speak|speakable)") as caught:
        await client.synthesize("Yes.", context=[ContextTurn(1, "...", silence)])
    assert [field for field, _ in caught.value.violations] == ["utterance.context[0].text"]


async def test_the_spoken_form_can_be_switched_off_and_a_stream_tells_it_too(client):
    stream = client.stream("It is 5 %.", text_normalization=False, max_audio_ms=160)
    assert [data async for data in stream] and stream.summary.spoken_text == "It is 5 %."
    assert stream.summary.finish_reason == common_pb2.FINISH_REASON_MAX_LENGTH


async def test_words_that_are_too_many_for_one_generation_are_spoken_in_parts(client):
    """51 characters whose spoken form has over 340: with its speech more than the model's 640 positions."""
    text = "1,234,567.89 2,345,678.91 3,456,789.12 4,567,891.23"
    response = await client.synthesize(text, seed=3, timeout_s=240)
    words = response.summary.spoken_text
    assert len(words) > 340 and words.startswith("one million") and words.endswith("point two three")
    assert response.summary.finish_reason == common_pb2.FINISH_REASON_END_OF_SPEECH
    assert 16 < response.summary.audio_duration.ToNanoseconds() / 1e9 < 40


@pytest.mark.parametrize("characters", [236, *(pytest.param(n, marks=pytest.mark.slow) for n in (300, 430, 506))])
async def test_a_text_of_some_length_is_said_whole(client, characters):
    text = (LONG_TEXT * 2)[:characters].rsplit(" ", 1)[0].rstrip(".") + "."
    response = await client.synthesize(text, seed=3, timeout_s=240)
    assert response.summary.spoken_text == text
    assert response.summary.finish_reason == common_pb2.FINISH_REASON_END_OF_SPEECH
    assert response.summary.audio_duration.ToNanoseconds() / 1e9 > 0.05 * characters
