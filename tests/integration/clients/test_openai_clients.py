"""OpenAI's package, and Pipecat's and LiveKit's OpenAI services, before the HTTP process over fake stages."""

from __future__ import annotations

import base64
import io

import av
import pytest

from support.fake_stages import SAMPLES_PER_FRAME
from support.http_face import open_http

SECONDS = 10 * SAMPLES_PER_FRAME / 24_000
SPOKEN = 10 * SAMPLES_PER_FRAME * 2
MEDIA = {"mp3": "audio/mpeg", "wav": "audio/wav", "flac": "audio/flac", "opus": "audio/ogg", "pcm": "audio/pcm"}


@pytest.fixture
async def face(open_chain):
    chain = await open_chain()
    async with open_http(chain.addresses["gateway"]) as face:
        chain.http = face.url.removeprefix("http://")
        yield chain


@pytest.mark.parametrize("form", [None, *MEDIA])
async def test_each_format_is_a_file_of_its_kind(face, run, form):
    options = {} if form is None else {"response_format": form}
    result = await run("openai_calls.py", face.http, "speech", options)
    data = base64.b64decode(result["audio"])
    assert result["content_type"].startswith(MEDIA[form or "mp3"])
    if form == "pcm":
        assert len(data) == SPOKEN
        return
    with av.open(io.BytesIO(data)) as file:
        rate_hz = file.streams.audio[0].rate
        assert sum(frame.samples for frame in file.decode(audio=0)) / rate_hz == pytest.approx(SECONDS, abs=0.1)


async def test_openai_streams_and_leaves(face, run, probe):
    result = await run("openai_calls.py", face.http, "stream", {})
    assert sum(result["sizes"]) == SPOKEN
    probe.frames, probe.gate = 100, 8
    result = await run("openai_calls.py", face.http, "stream", {"leave_after": 4096})
    assert sum(result["sizes"]) >= 4096
    await probe.until(lambda: not +probe.active)


async def test_openai_reads_our_errors(face, run):
    result = await run("openai_calls.py", face.http, "speech", {"voice": "eve"})
    assert result["status"] == 400 and result["body"]["param"] == "voice"


async def test_pipecat_speaks_over_http(face, run):
    result = await run("pipecat_calls.py", face.http, {"http": True})
    assert not result["errors"] and sum(result["sizes"]) == SPOKEN


@pytest.mark.parametrize("model", ["gpt-4o-mini-tts", "tts-1"])  # by server-sent events, and plain
async def test_livekit_speaks_over_http(face, run, model):
    result = await run("livekit_calls.py", face.http, "synthesize", {"http": True, "model": model})
    assert sum(result["sizes"]) / 2 / result["rate"] == pytest.approx(SECONDS, abs=0.12)
