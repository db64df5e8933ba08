"""riva.client, Pipecat and LiveKit over fake stages: what they hear, how they leave, what they say of errors."""

from __future__ import annotations

import base64
import io

import av
import pytest

from services.runtime.errors import UnavailableError
from support.fake_stages import SAMPLES_PER_FRAME

SECONDS = 10 * SAMPLES_PER_FRAME / 24_000  # the fake backbone makes ten frames
SPOKEN = 10 * SAMPLES_PER_FRAME * 2


def audio_of(result):
    return base64.b64decode(result["audio"])


@pytest.mark.parametrize("scenario", ["synthesize", "future", "online"])
async def test_riva_client_hears_at_its_own_default_rate(open_chain, run, scenario):
    chain = await open_chain()
    audio = audio_of(await run("riva_calls.py", chain.addresses["gateway"], scenario))
    assert len(audio) == round(SECONDS * 22_050) * 2


async def test_a_list_of_texts_is_spoken_in_order(open_chain, run):
    chain = await open_chain()
    options = {"text": ["One.", "Two.", "Three."], "sample_rate_hz": 24_000}
    result = await run("riva_calls.py", chain.addresses["gateway"], "online", options)
    assert sum(result["sizes"]) == 3 * SPOKEN and all(size and size % 2 == 0 for size in result["sizes"])


@pytest.mark.parametrize(("encoding", "form"), [("FLAC", "flac"), ("OGGOPUS", "ogg")])
async def test_files_that_riva_client_asks_for(open_chain, run, encoding, form):
    chain = await open_chain()
    options = {"text": ["One.", "Two."], "encoding": encoding}
    data = audio_of(await run("riva_calls.py", chain.addresses["gateway"], "online", options))
    with av.open(io.BytesIO(data), format=form) as file:
        rate_hz = file.streams.audio[0].rate
        samples = sum(frame.samples for frame in file.decode(audio=0))
    assert samples / rate_hz == pytest.approx(2 * SECONDS, abs=0.01)


async def test_voices_are_listed_to_each(open_chain, run):
    chain = await open_chain()
    address = chain.addresses["gateway"]
    assert (await run("riva_calls.py", address, "voices"))["embedded"]["subvoices"].startswith("heart:0,")
    listed = (await run("livekit_calls.py", address, "voices"))["voices"]
    assert listed["en-US"]["voices"][0] == "embedded.heart"


async def test_errors_reach_riva_client_in_words(open_chain, run):
    chain = await open_chain()
    address = chain.addresses["gateway"]
    result = await run("riva_calls.py", address, "synthesize", {"voice_name": "eve"})
    assert result["code"] == "INVALID_ARGUMENT"
    assert "voice_name: must be one of the voices here (heart" in result["details"]
    result = await run("riva_calls.py", address, "synthesize", {"text": " "})
    assert result["code"] == "INVALID_ARGUMENT" and "text" in result["details"]


async def test_leaving_frees_the_slots(open_chain, start, probe):
    chain = await open_chain()
    probe.frames, probe.gate = 100, 8
    result = await (await start("riva_calls.py", chain.addresses["gateway"], "cancel")).result()
    assert result["first"] > 0
    await probe.until(lambda: not +probe.active)
    assert probe.generated <= 8


@pytest.mark.parametrize("mode", ["per_sentence", "stitched"])
@pytest.mark.parametrize("rate_hz", [24_000, 16_000, 8_000])
async def test_pipecat_speaks_an_answer_that_comes_word_by_word(open_chain, run, mode, rate_hz):
    chain = await open_chain()
    options = {"texts": ["Hello there.", "How are you today?"], "llm": True, "synthesis_mode": mode, "rate": rate_hz}
    result = await run("pipecat_calls.py", chain.addresses["gateway"], options)
    assert not result["errors"]
    assert sum(result["sizes"]) == 2 * round(SECONDS * rate_hz) * 2
    assert all(size and size % 2 == 0 for size in result["sizes"])


@pytest.mark.parametrize("mode", ["per_sentence", "stitched"])
async def test_barge_in_of_pipecat_reaches_the_backbone(open_chain, run, probe, mode):
    chain = await open_chain()
    probe.frames, probe.gate = 100, 12
    options = {"llm": True, "texts": ["A long answer that is not heard to its end."], "synthesis_mode": mode}
    result = await run("pipecat_calls.py", chain.addresses["gateway"], {**options, "interrupt_at": 2})
    assert result["interrupted"] and not result["errors"]
    await probe.until(lambda: not +probe.active)
    assert probe.generated <= 12


async def test_pipecat_reports_errors_in_words(open_chain, run, probe):
    chain = await open_chain()
    result = await run("pipecat_calls.py", chain.addresses["gateway"], {"voice": "eve"})
    assert not result["sizes"] and "voice_name: must be one of the voices here" in " ".join(result["errors"])
    probe.refuse["backbone"] = UnavailableError("backbone: gone")
    result = await run("pipecat_calls.py", chain.addresses["gateway"], {})
    assert not result["sizes"] and "backbone" in " ".join(result["errors"])


@pytest.mark.parametrize("scenario", ["stream", "synthesize"])
async def test_livekit_speaks_at_its_own_rate_with_its_own_voice(open_chain, run, scenario):
    chain = await open_chain()
    result = await run("livekit_calls.py", chain.addresses["gateway"], scenario, {})
    assert result["rate"] == 16_000
    assert sum(result["sizes"]) == pytest.approx(SECONDS * 16_000 * 2, abs=2 * 16 * 20)  # whole frames of 20 ms


async def test_livekit_says_that_nothing_came(open_chain, run):
    """It keeps the status for its log."""
    chain = await open_chain()
    result = await run("livekit_calls.py", chain.addresses["gateway"], "stream", {"voice": "eve"})
    assert "no audio frames were pushed" in result["error"]


async def test_an_interrupted_livekit_lets_the_sentence_run_on(open_chain, run, probe):
    """Its worker thread reads to the end: count such slots when sizing."""
    chain = await open_chain()
    result = await run("livekit_calls.py", chain.addresses["gateway"], "stream", {"limit": 1})
    assert len(result["sizes"]) == 1
    await probe.until(lambda: not +probe.active)


async def test_32_callers_at_once(open_chain, run):
    chain = await open_chain()
    results = (await run("riva_calls.py", chain.addresses["gateway"], "many"))["results"]
    assert {size for size, _ in results} == {SPOKEN}
    for seed in range(4):
        assert len({digest for _, digest in results[seed::4]}) == 1
