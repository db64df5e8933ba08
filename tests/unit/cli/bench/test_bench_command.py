"""`csm bench` as its users meet it: a process against a server that speaks, refuses, cheats or hangs."""

import asyncio
import gc
import json
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
from csm.common.v1 import common_pb2
from csm.speech.v1 import speech_pb2
from csm_client import SpeechClient

from gateway.cli.bench import command, fleet
from gateway.cli.bench.plan import Plan
from gateway.cli.bench.record import OK, Record
from gateway.cli.bench.texts import sentences
from gateway.cli.bench.worker import Callers, orders, read_orders
from services.runtime.errors import ResourceExhausted, UnavailableError
from support.fake_speech import FRAME, RATE_HZ, FakeSpeech, serving, tone

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
            raise ResourceExhausted("all permits are in use", 0.1)
        if do == "go away":
            raise UnavailableError("gone")
        pcm = common_pb2.AudioFormat(encoding=common_pb2.AUDIO_ENCODING_PCM_S16LE, sample_rate_hz=RATE_HZ, channels=1)
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


def bench_options(*arguments):
    """The options of `csm bench` with these arguments."""
    return SimpleNamespace(**command.command.make_context("bench", list(arguments)).params)


async def start(address, folder, *arguments):
    env = {"PATH": "/usr/bin:/bin", "CSM_STATE_DIR": str(folder / "state"), "PYTHONPATH": ":".join(sys.path)}
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "gateway.cli",
        "bench",
        "--address",
        address,
        "-o",
        str(folder / "out"),
        *arguments,
        cwd=folder,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
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
        assert point["ok"] == point["requests"] >= 1 and point["errors"] == {} and point["is_complete"]
        assert point["bytes"] == point["ok"] * FRAMES * FRAME * 2 == point["samples_checked"] * 2
        assert point["first_audio_s"]["count"] == point["ok"] and point["gap_s"]["count"] == point["ok"] * (FRAMES - 1)
    assert found["points"][1]["requests"] >= 3
    assert sum(point["requests"] for point in found["points"]) == len(behaviour["requests"])
    assert (tmp_path / "out" / "bench.md").read_text() == out
    texts = {request.utterance.text for request in behaviour["requests"]}
    assert all(
        request.utterance.max_audio_ms == max(80, 80 * len(request.utterance.text)) for request in behaviour["requests"]
    )
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


async def test_sentences_that_may_not_fit_are_left_out_and_told(served, tmp_path, monkeypatch):
    behaviour, address = served
    monkeypatch.setattr(FakeSpeech, "max_seq_len", 60)
    code, out, err, found = await bench(address, tmp_path, "--streams", "8", "--duration", "0.3", "--ramp-up", "0")
    assert code == 0, out + err
    assert max(len(request.utterance.text) for request in behaviour["requests"]) <= 27
    count = sum(len(text) <= 27 for text in sentences())  # a character is a frame of 80 ms, five more are the segment's
    assert (
        found["texts"] == f"{count} of 400 sentences: with their audio these surely fit 60 tokens"
        and found["texts"] in out
    )
    code, out, err, _ = await bench(address, tmp_path, "--audio-seconds", "5")
    assert code == 1 and out == "" and "no sentence fits" in err and "60 tokens" in err


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
    assert (point["unfinished"], point["ok"], point["errors"], point["is_complete"]) == (2, 0, {}, False)
    assert "stopped early" in out.decode()


async def test_an_address_where_nothing_listens_is_one_line(tmp_path):
    code, out, err, _ = await bench("127.0.0.1:1", tmp_path, "--duration", "1")
    assert code == 5 and out == "" and "nothing listens" in err


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
    free_s = first["intended_s"] + first["took_s"]  # no other was sent before
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


@pytest.fixture
def bench_here(served, tmp_path, monkeypatch):
    """bench_here(outcomes, options): exit code and bench.json of a bench in this process, whose points come to `outcomes`."""
    monkeypatch.setenv("CSM_STATE_DIR", str(tmp_path / "state"))

    async def run(outcomes, *options):
        left = iter(outcomes)

        async def point(args, plan, processes, show):
            outcome = next(left)
            if isinstance(outcome, Exception):
                raise outcome
            return fleet.Outcome(plan, processes, outcome, wall_s=1.0)

        monkeypatch.setattr(fleet, "run", point)
        options = ["--address", served[1], "-o", str(tmp_path / "out"), *options]
        code = await command.run(bench_options(*options))
        file = tmp_path / "out" / "bench.json"
        return code, json.loads(file.read_text()) if file.exists() else None

    return run


def heard(intended_s=0.0):
    return Record(intended_s=intended_s, sent_s=intended_s, status=OK, first_audio_s=0.1, took_s=1.0, audio_s=1.0)


async def test_cancelled_while_its_workers_start_it_leaves_nothing_unheard(monkeypatch):
    started, unheard = asyncio.Event(), []

    async def never(self, args, plan):
        started.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(fleet._Worker, "start", never)
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: unheard.append(context))
    running = asyncio.ensure_future(fleet.run(SimpleNamespace(), Plan(streams=3), 3, lambda _: None))
    await started.wait()
    running.cancel()
    await asyncio.wait([running])
    assert running.cancelled()
    del running
    gc.collect()
    assert not unheard


async def test_a_sweep_that_breaks_off_keeps_its_finished_points(bench_here, capsys):
    gone = fleet.WorkerFailed("a worker process of the bench ended: nothing answers")
    code, found = await bench_here([[heard()], [heard()], gone], "--streams", "1,2,3,4")
    out, err = capsys.readouterr()
    assert code == 1 and str(gone) in err
    assert [point["label"] for point in found["points"]] == ["1", "2"]
    assert found["aborted"] == f"{gone}; 2 of 4 points are missing" and found["aborted"] in out


async def test_a_bench_that_breaks_off_at_once_reports_nothing(bench_here, capsys):
    assert await bench_here([fleet.WorkerFailed("gone")]) == (1, None)
    assert capsys.readouterr() == ("", "csm: gone\n")


@pytest.mark.parametrize("records", [[], [heard(3.0)]])
async def test_a_point_where_nothing_was_measured_is_no_success(bench_here, capsys, records):
    code, found = await bench_here([[heard(60.0)], records], "--streams", "1,7", "--warmup", "50")
    assert code == 1 and len(found["points"]) == 2
    assert "no utterance was measured at 7:" in capsys.readouterr().err
    assert (await bench_here([[heard(60.0)]], "--warmup", "50"))[0] == 0


@pytest.mark.parametrize(
    ("load", "processes"),
    [
        (("--rate", "0.5"), 1),
        (("--rate", "100", "--audio-seconds", "10"), 5),
        (("--rate", "10000"), 64),
        (("--streams", "200"), 1),
        (("--streams", "201"), 2),
        (("--rate", "100", "--processes", "3"), 3),
    ],
)
def test_more_load_takes_more_processes(monkeypatch, load, processes):
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    args = bench_options(*load)
    (plan,) = command._plans(args)
    assert command._Bench(args, [plan], None)._processes(plan) == processes


def test_the_streams_of_a_rate_are_those_that_its_texts_make():
    letters = sum(map(len, sentences())) / len(sentences())
    assert Plan(rate_hz=2.0, ms_per_character=100).expected_streams == pytest.approx(0.2 * letters, rel=1e-3)


def test_a_worker_reads_what_its_parent_wrote():
    args, plan = SimpleNamespace(address="x:1", timeout=3.0, run=print), Plan(streams=3)
    read_args, read_plan = read_orders(orders(args, plan))
    assert vars(read_args) == {"address": "x:1", "timeout": 3.0} and read_plan == plan
