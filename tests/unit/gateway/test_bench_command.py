"""`csm bench` as its users meet it: a process against a server that speaks, refuses, cheats or hangs."""

import argparse
import asyncio
import json
import signal
import subprocess
import sys

import pytest
from csm.common.v1 import common_pb2
from csm.speech.v1 import speech_pb2
from fake_speech import FRAME, RATE_HZ, FakeSpeech, serving, tone

from gateway.bench.plan import Plan
from gateway.bench.worker import Callers, orders, read_orders
from gateway.client import SpeechClient
from services.runtime.errors import Overloaded, Unavailable

BUNDLE = common_pb2.BundleIdentity(bundle_id="fake", codebooks=8, frame_rate_hz=12.5, sample_rate_hz=RATE_HZ)
FRAMES = 5


@pytest.fixture
async def served(monkeypatch):
    """(behaviour, address): behaviour is a dict whose `do` decides what the next utterances do."""
    behaviour = {"do": "speak", "requests": [], "release": asyncio.Event()}

    async def stream_synthesize(self, request, context):
        behaviour["requests"].append(request)
        do = behaviour["do"]
        if do == "refuse":
            raise Overloaded("all places are taken", 0.1)
        if do == "go away":
            raise Unavailable("gone")
        pcm = common_pb2.AudioFormat(
            encoding=common_pb2.AUDIO_ENCODING_PCM_S16LE, sample_rate_hz=RATE_HZ, channels=1
        )
        yield speech_pb2.StreamSynthesizeResponse(started=speech_pb2.SpeechStarted(format=pcm, trace_id="ab" * 16))
        if do == "hold":
            await behaviour["release"].wait()
        for _ in range(FRAMES - (do == "lose a frame")):
            yield speech_pb2.StreamSynthesizeResponse(audio=speech_pb2.SpeechAudio(data=tone(FRAME)))
        if do == "hang":
            await asyncio.Event().wait()
        summary = speech_pb2.SpeechSummary(frames=FRAMES, samples=FRAMES * FRAME)
        yield speech_pb2.StreamSynthesizeResponse(finished=speech_pb2.SpeechFinished(summary=summary))

    monkeypatch.setattr(FakeSpeech, "StreamSynthesize", stream_synthesize)
    async with serving() as (_, address):
        yield behaviour, address


async def start(address, folder, *arguments):
    env = {"PATH": "/usr/bin:/bin", "CSM_STATE_DIR": str(folder / "state"), "PYTHONPATH": ":".join(sys.path)}
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway.cli", "bench", "--address", address, "-o", str(folder / "out"), *arguments,
        cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )


async def bench(address, folder, *arguments):
    """(exit code, standard output, standard error, bench.json)."""
    process = await start(address, folder, *arguments)
    out, err = await asyncio.wait_for(process.communicate(), 120)
    file = folder / "out" / "bench.json"
    return process.returncode, out.decode(), err.decode(), json.loads(file.read_text()) if file.exists() else None


async def test_a_sweep_tells_of_every_point_and_counts_every_byte(served, tmp_path):
    behaviour, address = served
    code, out, err, found = await bench(
        address, tmp_path, "--streams", "1,3", "--duration", "0.3", "--processes", "2", "--ramp-up", "0"
    )
    assert code == 0, out + err
    assert [point["label"] for point in found["points"]] == ["1", "3"]
    assert [point["processes"] for point in found["points"]] == [1, 2]
    for point in found["points"]:
        assert point["ok"] == point["requests"] >= 1 and point["errors"] == {} and point["is_whole"]
        assert point["bytes"] == point["ok"] * FRAMES * FRAME * 2 == point["samples_checked"] * 2
        assert point["first_audio_s"]["count"] == point["ok"] and point["gap_s"]["count"] == point["ok"] * (FRAMES - 1)
    assert found["points"][1]["requests"] >= 3
    assert sum(point["requests"] for point in found["points"]) == len(behaviour["requests"])
    assert (tmp_path / "out" / "bench.md").read_text() == out
    texts = {request.utterance.text for request in behaviour["requests"]}
    assert all(request.utterance.max_audio_ms == max(80, 80 * len(request.utterance.text)) for request in behaviour["requests"])
    assert len(texts) > 1
    if (tmp_path / "out" / "bench.png").exists():
        assert (tmp_path / "out" / "bench.png").stat().st_size > 1000
    else:
        assert "csm-serve[bench]" in err


@pytest.mark.parametrize(
    ("do", "status"),
    [("lose a frame", "BYTES_DO_NOT_ADD_UP"), ("refuse", "RESOURCE_EXHAUSTED"), ("go away", "UNAVAILABLE")],
)
async def test_what_fails_is_counted_by_its_status_and_ends_in_exit_code_1(served, tmp_path, do, status):
    behaviour, address = served
    behaviour["do"] = do
    code, out, _, found = await bench(address, tmp_path, "--streams", "2", "--duration", "0.2", "--ramp-up", "0")
    (point,) = found["points"]
    assert code == 1 and point["ok"] == 0
    assert point["errors"] == {status: point["requests"]} and point["requests"] >= 2
    assert status in out and point["examples"][status] in out
    if do == "lose a frame":
        assert "5 frames are 19200 bytes, 15360 came" in out and point["miscounted"] == point["requests"]


async def test_ctrl_c_gives_the_report_so_far(served, tmp_path):
    behaviour, address = served
    behaviour["do"] = "hang"
    process = await start(address, tmp_path, "--streams", "2,4", "--duration", "600", "--ramp-up", "0")
    async with asyncio.timeout(60):
        while len(behaviour["requests"]) < 2:
            await asyncio.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 130, err
    (point,) = json.loads((tmp_path / "out" / "bench.json").read_text())["points"]
    assert (point["unfinished"], point["ok"], point["errors"], point["is_whole"]) == (2, 0, {}, False)
    assert "stopped early" in out.decode()


async def test_nobody_there_is_one_line(tmp_path):
    code, out, err, _ = await bench("127.0.0.1:1", tmp_path, "--duration", "1")
    assert code == 5 and out == "" and "nothing answers" in err


async def test_open_loop_counts_from_the_intended_arrival(served):
    """One slow answer with no room for another: those behind it have waited, though they were sent late."""
    behaviour, address = served
    behaviour["do"] = "hold"
    events = []
    plan = Plan(rate_hz=50.0, duration_s=0.2, max_in_flight=1, audio_s=1.0)
    async with SpeechClient(address) as client:
        await client.voices()
        callers = Callers([client], BUNDLE, plan, events.append)
        asyncio.get_running_loop().call_later(0.5, behaviour["release"].set)
        await callers.run()
    first, *others = records = [event["record"] for event in events if "record" in event]
    assert len(records) >= 4 and all(record["status"] == "OK" for record in records)
    assert [record["intended_s"] for record in records] == sorted(record["intended_s"] for record in records)
    assert all(record["intended_s"] < 0.2 for record in records)
    free_s = first["intended_s"] + first["took_s"]  # nobody else was sent before
    assert free_s > 0.2
    for record in others:
        assert record["sent_s"] >= free_s
        assert record["first_audio_s"] >= free_s - record["intended_s"]


async def test_closed_loop_keeps_its_number_of_callers(served):
    behaviour, address = served
    behaviour["do"] = "hold"
    events = []
    async with SpeechClient(address) as client:
        await client.voices()
        plan = Plan(streams=5, duration_s=60.0, ramp_up_s=0.0)
        task = asyncio.ensure_future(Callers([client], BUNDLE, plan, events.append).run())
        async with asyncio.timeout(30):
            while len(behaviour["requests"]) < 5:
                await asyncio.sleep(0.01)
            while not any(event.get("active") == 5 for event in events):
                await asyncio.sleep(0.01)
        assert len(behaviour["requests"]) == 5
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert [event["record"]["status"] for event in events if "record" in event] == ["UNFINISHED"] * 5


def test_a_worker_reads_what_its_parent_wrote():
    args, plan = argparse.Namespace(address="x:1", timeout=3.0, run=print), Plan(streams=3)
    read_args, read_plan = read_orders(orders(args, plan))
    assert vars(read_args) == {"address": "x:1", "timeout": 3.0} and read_plan == plan
