"""The HTTP process before the real chain, with the bundled model: many callers, callers who leave, a drain, and the page."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
import signal
import urllib.parse
import wave

import grpc
import httpx
import numpy as np
import pytest
import pytest_asyncio
from csm.backbone.v1 import backbone_pb2, backbone_pb2_grpc
from csm.speech.v1 import speech_pb2, speech_pb2_grpc
from playwright.async_api import expect

from support.browser import executable, open_browser
from support.http_face import HttpProcess
from support.processes import Processes, free_ports

pytestmark = pytest.mark.asyncio(loop_scope="module")
SPEECH = "/v1/audio/speech"
TEXT = "Good morning. The letters are on the table in the kitchen."
CALLERS = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("logs")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chain(folder):
    room = dict.fromkeys(("CSM_BACKBONE_SLOTS", "CSM_CODEC_SLOTS", "CSM_WATERMARK_STREAMS"), str(CALLERS))
    async with Processes(folder, room) as processes:
        yield processes


def process(chain, folder, **env):
    (port,) = free_ports(1)
    settings = {
        "CSM_HTTP_LISTEN": f"127.0.0.1:{port}",
        "CSM_HTTP_GATEWAY_ADDRESS": chain.addresses["gateway"],
        "CSM_HTTP_QUEUE_S": "120",  # the machine of a test may be slow
        **env,
    }
    return HttpProcess(folder / f"http-{port}.log", settings)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def http(chain, folder):
    async with process(chain, folder) as running:
        await running.until(200)
        yield running
    assert "Traceback" not in running.log.read_text()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(http):
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=http.url, timeout=240, trust_env=False, limits=limits) as opened:
        yield opened


async def rpc(chain, text, seed):
    """Samples and summary, by the plain RPC."""
    utterance = speech_pb2.Utterance(text=text, voice="heart")
    utterance.sampling.seed = seed
    async with grpc.aio.insecure_channel(chain.addresses["gateway"]) as channel:
        stub = speech_pb2_grpc.SpeechServiceStub(channel)
        pieces, summary = [], None
        async for answer in stub.StreamSynthesize(speech_pb2.StreamSynthesizeRequest(utterance=utterance), timeout=240):
            pieces.append(answer.audio.data)
            summary = answer.finished.summary if answer.HasField("finished") else summary
        audio = np.frombuffer(b"".join(pieces), "<i2").astype(int)
    return audio, summary


def body(text, seed, **fields):
    return {"model": "csm", "voice": "heart", "input": text, "response_format": "pcm", "seed": seed, **fields}


async def free(chain):
    """Wait until no slot is taken."""
    async with asyncio.timeout(30), grpc.aio.insecure_channel(chain.addresses["backbone"]) as channel:
        stub = backbone_pb2_grpc.BackboneServiceStub(channel)
        while True:
            load = await stub.GetLoad(backbone_pb2.GetLoadRequest())
            if load.slots_active == load.queue_depth == 0:
                return
            await asyncio.sleep(0.05)


async def test_many_callers_at_once_get_every_byte(chain, client):
    """Half of them as events, whose summary says how many samples there are; all against the RPC."""

    async def one(number):
        seed, is_sse = 1 + number % 4, number % 2
        answer = await client.post(
            SPEECH, json=body("Yes, of course.", seed, stream_format="sse" if is_sse else "audio")
        )
        assert answer.status_code == 200, answer.text
        if not is_sse:
            return seed, answer.content
        *deltas, done = [json.loads(block.removeprefix("data: ")) for block in answer.text.split("\n\n")[:-1]]
        audio = b"".join(base64.b64decode(event["audio"]) for event in deltas)
        assert len(audio) == 2 * done["csm"]["samples"]
        return seed, audio

    answers = await asyncio.gather(*(one(number) for number in range(CALLERS)))
    expected = {seed: (await rpc(chain, "Yes, of course.", seed))[0] for seed in (1, 2, 3, 4)}
    for seed, audio in answers:
        samples = np.frombuffer(audio, "<i2").astype(int)
        assert len(samples) == len(expected[seed]) > 0
        # Chunks of other lengths may round differently in the last bits of a sample.
        assert np.abs(samples - expected[seed]).max() <= 3
    await free(chain)


async def test_a_caller_who_leaves_frees_every_slot(chain, client):
    for _ in range(3):
        async with client.stream("POST", SPEECH, json=body(TEXT * 4, 5)) as answer:
            await anext(answer.aiter_bytes())
        await free(chain)


async def test_what_the_generator_refuses_is_named(client):
    answer = await client.post(SPEECH, json=body(TEXT, 1, temperature=9))
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "temperature")


async def test_the_watermark_is_found_in_what_was_spoken(client):
    speech = await client.post(SPEECH, json=body(TEXT, 3, response_format="wav"))
    found = (await client.post("/v1/audio/watermark", content=speech.content)).json()
    assert (found["verdict"], found["found"], len(found["marks"])) == ("found", True, 1)
    none = await client.post("/v1/audio/watermark", content=_silence())
    assert (none.json()["verdict"], none.json()["found"]) == ("silent", False)
    bad = await client.post("/v1/audio/watermark", content=b"no audio at all")
    assert (bad.status_code, bad.json()["error"]["param"]) == (400, "file")
    empty = await client.post("/v1/audio/watermark", content=b"")
    assert (empty.status_code, empty.json()["error"]["param"]) == (400, "file")


async def test_a_drain_lets_running_requests_end(chain, folder):
    async with process(chain, folder, CSM_DRAIN_S="2", CSM_GRACE_S="60") as ending:
        await ending.until(200)
        async with httpx.AsyncClient(base_url=ending.url, timeout=120, trust_env=False) as caller:
            async with caller.stream("POST", SPEECH, json=body(TEXT, 7)) as answer:
                pieces = answer.aiter_bytes()
                heard = len(await anext(pieces))
                ending.process.send_signal(signal.SIGTERM)
                await ending.until(503)
                assert (await caller.get("/healthz")).status_code == 200
                async for piece in pieces:
                    heard += len(piece)
            assert heard == 2 * len((await rpc(chain, TEXT, 7))[0])
        assert await asyncio.wait_for(ending.process.wait(), 60) == 0
    assert "Traceback" not in ending.log.read_text()


async def test_a_request_that_outlasts_the_drain_is_broken_off(chain, folder):
    async with process(chain, folder, CSM_GRACE_S="1") as ending:
        await ending.until(200)
        async with httpx.AsyncClient(base_url=ending.url, timeout=120, trust_env=False) as caller:
            with pytest.raises(httpx.TransportError):
                async with caller.stream("POST", SPEECH, json=body(TEXT * 8, 7)) as answer:
                    pieces = answer.aiter_bytes()
                    await anext(pieces)
                    ending.process.send_signal(signal.SIGTERM)
                    async for _ in pieces:
                        pass
        assert await asyncio.wait_for(ending.process.wait(), 60) == 0
    await free(chain)


RECORDER = """
class Recorder extends AudioWorkletProcessor {
  process([[input]]) {
    if (input) this.port.postMessage(input.slice());
    return true;
  }
}
registerProcessor('recorder', Recorder);
"""
LISTEN = """async (source) => {
  await csm.player.open();
  const url = URL.createObjectURL(new Blob([source], { type: 'text/javascript' }));
  await csm.player.context.audioWorklet.addModule(url);
  const recorder = new AudioWorkletNode(csm.player.context, 'recorder', { numberOfOutputs: 0 });
  csm.player.output.connect(recorder);
  window.heard = [];
  recorder.port.onmessage = ({ data }) => window.heard.push(...data);
}"""
HEARD = "() => [csm.player.context.sampleRate, window.heard.map((value) => Math.round(value * 32768))]"
DOWNLOADED = """async () => {
  const bytes = await (await fetch(document.querySelector('#download').href)).arrayBuffer();
  return [...new Int16Array(bytes.slice(44))];
}"""


DROPPED = """async () => {
  const blob = await (await fetch(document.querySelector('#download').href)).blob();
  const transfer = new DataTransfer();
  transfer.items.add(new File([blob], 'spoken.wav', { type: 'audio/wav' }));
  return transfer;
}"""


def without_gaps(heard, received):
    """How much of `received` was heard, in order, with nothing but silence between: an underrun plays silence."""
    at = 0
    for value in heard:
        if at < len(received) and value == received[at]:
            at += 1
        elif value != 0:
            return at, value
    return at, None


@pytest.mark.skipif(executable() is None, reason="no npm registry when the tests were installed, and no Chromium here")
async def test_the_page_plays_what_the_rpc_gives(chain, http):
    async with open_browser() as browser:
        context = await browser.new_context(bypass_csp=True)  # for the recorder alone
        page = await context.new_page()
        problems, hosts = [], set()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: hosts.add(urllib.parse.urlsplit(request.url).netloc))
        await page.goto(http.url)
        await expect(page.get_by_label("Voice").locator("option")).to_have_count(4)
        await page.evaluate(LISTEN, RECORDER)

        # By keyboard alone, from the text on.
        await page.get_by_label("Text").fill(TEXT)
        await page.keyboard.press("Tab")
        await expect(page.get_by_label("Voice")).to_be_focused()
        await page.keyboard.press("Tab")
        await expect(page.get_by_label("Seed")).to_be_focused()
        await page.keyboard.type("6")
        await page.keyboard.press("Tab")
        await page.keyboard.press("Tab")
        await expect(page.get_by_role("button", name="Speak")).to_be_focused()
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("button", name="Stop")).to_be_enabled()
        await expect(page.get_by_role("status").first).to_have_text(re.compile("^Spoken"), timeout=120_000)

        expected, summary = await rpc(chain, TEXT, 6)
        received = np.array(await page.evaluate(DOWNLOADED))
        assert len(received) == len(expected)
        assert np.abs(received - expected).max() <= 3
        rate, heard = await page.evaluate(HEARD)
        assert rate == 24_000
        assert without_gaps(heard, list(received)) == (len(received), None)

        rows = page.get_by_role("row")
        await expect(rows).to_have_count(1 + 6)
        await expect(rows.nth(2)).to_contain_text("backbone")
        await expect(page.get_by_text(summary.spoken_text, exact=True)).to_be_visible()

        await page.get_by_role("button", name="Look for its watermark").click()
        await expect(page.get_by_text("The watermark is there.")).to_be_visible(timeout=60_000)
        silence = {"name": "a.wav", "mimeType": "audio/wav", "buffer": _silence()}
        await page.get_by_label("Drop an audio file here").set_input_files(silence)
        await expect(page.get_by_text("The clip is silent.")).to_be_visible(timeout=60_000)

        dropped = await page.evaluate_handle(DROPPED)
        await page.dispatch_event("h1", "drop", {"dataTransfer": dropped})  # beside the field is as good
        await expect(page.get_by_text("The watermark is there.")).to_be_visible(timeout=60_000)

        # Stopped by a key, everything behind the page stops.
        await page.get_by_label("Text").fill(TEXT * 8)
        await page.keyboard.press("Control+Enter")
        under_way = re.compile("^(Speaking|The loudspeaker waits)")  # a slow machine speaks slower than it is heard
        await expect(page.get_by_role("status").first).to_have_text(under_way, timeout=60_000)
        await page.keyboard.press("Escape")
        await expect(page.get_by_role("status").first).to_have_text("Stopped.")
        await free(chain)

        async with await browser.new_context() as strict:  # with the page's own policy
            as_served = await strict.new_page()
            as_served.on("console", lambda message: problems.append(message.text))
            await as_served.goto(http.url)
            await expect(as_served.get_by_label("Voice").locator("option")).to_have_count(4)
            await as_served.get_by_label("Text").fill("Yes.")
            await as_served.get_by_role("button", name="Speak").click()
            await expect(as_served.get_by_role("status").first).to_have_text(re.compile("^Spoken"), timeout=60_000)

        await page.get_by_label("Text").fill("...")
        await page.get_by_role("button", name="Speak").click()
        await expect(page.get_by_role("alert")).to_contain_text("input")
        assert hosts - {""} == {urllib.parse.urlsplit(http.url).netloc}
        assert [text for text in problems if "400 (Bad Request)" not in text] == []


def _silence():
    held = io.BytesIO()
    with wave.open(held, "wb") as file:
        file.setparams((1, 2, 24_000, 0, "NONE", ""))
        file.writeframes(bytes(48_000))
    return held.getvalue()
