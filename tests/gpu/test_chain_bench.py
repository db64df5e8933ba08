"""The parts of bench_chain.py, without a chain; `slow`: all of it, two of each stage, on the embedded bundle."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import bench_chain
import chain_layout
import chain_setup
import pytest
from chain_layout import Counts, layout
from chain_points import Done, Wish, carried, next_streams
from chain_report import write, write_logs
from chain_setup import check_settings, out_folder
from chain_text import brief, limits, ratio_text, spread
from chain_use import Gpu, Reading, children, use_between

from gateway.bench.fleet import Outcome
from gateway.bench.record import OK, UNFINISHED, Record
from gateway.bench.stats import point
from services.runtime import tls

SCRIPT = Path(__file__).parent / "bench_chain.sh"


@pytest.fixture(autouse=True)
def nothing_is_set(monkeypatch):
    for name in chain_setup._SETTINGS:
        monkeypatch.delenv(name, raising=False)


def counts(one=(), **of):
    each = {"tokenizer": 1, "backbone": 1, "codec": 1, "watermark": 1, "gateway": 2} | of
    return Counts(each, frozenset(one))


def gpus(made):
    return {process.name: process.gpu for process in made.processes if process.gpu is not None}


def test_one_of_each_stage_shares_the_only_gpu():
    made = layout(counts(), ["0"], {"watermark": 0})
    names = [process.name for process in made.processes]
    assert names == ["tokenizer", "backbone", "codec", "watermark", "gateway", "gateway-2"]
    assert gpus(made) == {"backbone": "0", "codec": "0", "watermark": "0"}
    ports = [address for process in made.processes for address in (process.address, process.metrics)]
    assert len(set(ports)) == len(ports)


def test_processes_of_a_stage_take_gpus_in_turn():
    made = layout(counts(backbone=2, codec=2, watermark=3), ["4", "7"], {"codec": 0, "watermark": 1})
    assert gpus(made) == {
        "backbone": "4", "backbone-2": "7", "codec": "4", "codec-2": "7",
        "watermark": "7", "watermark-2": "4", "watermark-3": "7",
    }  # fmt: skip
    child = next(child for child in made.children({"CSM_MODEL": "embedded"}) if child.name == "watermark-2")
    assert child.argv[-1] == "services.watermark"
    assert child.env["CUDA_VISIBLE_DEVICES"] == "4" and child.env["CSM_MODEL"] == "embedded"


def test_gateways_of_a_comparison_call_one_backbone_or_all():
    made = layout(counts(one=["backbone"], backbone=2), [], {})
    env = {child.name: child.env for child in made.children({})}
    first, second = (process.address for process in made.named("backbone"))
    assert {env[name]["CSM_BACKBONE_ADDRESS"] for name in ("one-gateway", "one-gateway-2")} == {first}
    assert {env[name]["CSM_BACKBONE_ADDRESS"] for name in ("gateway", "gateway-2")} == {f"ipv4:{first},{second}"}
    assert env["one-gateway"]["CSM_CODEC_ADDRESS"] == env["gateway"]["CSM_CODEC_ADDRESS"]
    assert made.gateways() != made.gateways(one=True) and made.gateways().startswith("ipv4:127.0.0.1:")
    assert tls.is_loopback(made.gateways())  # so that nothing asks for TLS


def test_counts_come_from_the_environment(monkeypatch):
    assert Counts.read().of == counts().of and not Counts.read().one
    monkeypatch.setenv("COMPARE", "all")
    assert Counts.read().of == counts(backbone=2, codec=2, watermark=2, gateway=4).of
    assert Counts.read().one == {"backbone", "codec", "watermark"}
    monkeypatch.setenv("COMPARE", "1")
    monkeypatch.setenv("WATERMARKS", "3")
    monkeypatch.setenv("GATEWAYS", "3")
    assert Counts.read().of == counts(backbone=2, watermark=3, gateway=3).of and Counts.read().one == {"backbone"}
    assert Counts.read().slots("codec", 1024) == 2048 and Counts.read().slots("watermark", 1024) == 683


@pytest.mark.parametrize(
    ("name", "text", "allowed"),
    [
        *(("POINTS", text, "streams:seconds[:ramp]") for text in ("a:b", "0:2", "-1:2", "2:0", "2:nan", "2:4:5", "2:4:1:1", " ")),
        ("POINTS_ALL", "1:2 x", "streams:seconds[:ramp]"),
        *((name, text, "a whole number from 1 to 64") for name in ("REPLICAS", "CODECS", "GATEWAYS") for text in ("0", "-1", "x")),
        ("CODEC_GPU", "-1", "a whole number from 0 to 63"),
        ("COMPARE", "2", "0, 1 or all"),
        ("LIMIT_S", "abc", "a whole number from 1 to 86400"),
        ("AUDIO_S", "inf", "a number from 0.08 to 600"),
        ("TRACED", "nan", "a number from 0 to 1"),
        ("DEVICE", "gpu", "cuda or cpu"),
        ("BUNDLE", "nothing/there", "embedded, noise or a folder with a bundle.toml"),
        ("SHAPES_FOLDER", __file__, "a folder"),
        ("OUT", __file__, "a folder"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(monkeypatch, name, text, allowed):
    monkeypatch.setenv(name, text)
    with pytest.raises(SystemExit) as refused:
        check_settings()
    assert refused.value.code.startswith(f"{name}={text!r}: must be ") and allowed in refused.value.code
    assert "\n" not in refused.value.code


def test_settings_that_can_be_used_are_taken(monkeypatch, tmp_path):
    check_settings()
    can = {"POINTS": "1 2:4:4", "COMPARE": "all", "WATERMARK_GPU": "0", "DEVICE": "cpu", "BUNDLE": "noise", "OUT": str(tmp_path / "a")}
    for name, text in can.items():
        monkeypatch.setenv(name, text)
    check_settings()
    assert not (tmp_path / "a").exists()
    monkeypatch.setenv("REPLICAS", "1")  # one with one
    with pytest.raises(SystemExit, match="REPLICAS='1': must be 2 or more with COMPARE"):
        check_settings()


def test_where_files_go_must_be_a_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("OUT", str(tmp_path / "new/one"))
    (out_folder() / "old").touch()
    assert list(out_folder("old").iterdir()) == []
    monkeypatch.setenv("OUT", f"{__file__}/below")
    with pytest.raises(SystemExit, match=r"^OUT='.*/below': must be a folder to write files to: .*Not a directory"):
        out_folder()


@contextlib.contextmanager
def script(tmp_path, **settings):
    """The whole of it, in the background."""
    env = {"OUT": str(tmp_path / "out"), "PYTHON": sys.executable, "WHEELS": str(tmp_path), "DEVICE": "cpu", "LIMIT_S": "20"}
    with subprocess.Popen(
        [SCRIPT], env=os.environ | env | settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as ran:
        try:
            yield ran
        finally:
            ran.terminate()


@pytest.mark.parametrize(("name", "text"), [("POINTS", "0:2"), ("LIMIT_S", "out[$(touch ${OUT}_ran)]"), ("BEGAN_S", "x")])
def test_nothing_begins_with_settings_that_cannot_be_used(tmp_path, name, text):
    with script(tmp_path, **{name: text}) as ran:
        _, said = ran.communicate(timeout=60)
    assert ran.returncode == 1 and said.startswith(f"{name}=") and said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


# The bench with another process in place of the services, and with points that never end.
ENDLESS = """
import asyncio, sys
import bench_chain
from gateway.supervisor import Child, Supervisor

async def start(layout, work, stack):
    child = Child("codec", (sys.executable, "-c", "import signal; signal.pause()"), "")
    supervisor = await stack.enter_async_context(Supervisor([child], work / "logs"))
    print("ready", supervisor._processes["codec"].pid, work, flush=True)
    return [supervisor]

async def measure_all(chain, out):
    await asyncio.Event().wait()

bench_chain.start, bench_chain.measure_all = start, measure_all
sys.exit(bench_chain.main())
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_nothing_behind(tmp_path, number, code):
    (tmp_path / "endless.py").write_text(ENDLESS)
    python = tmp_path / "python"  # what is asked to run bench_chain.py
    python.write_text(f"#!/bin/sh\nexec {sys.executable} {tmp_path}/endless.py\n")
    python.chmod(0o755)
    with script(tmp_path, PYTHON=str(python)) as ran:
        told = next((line for line in ran.stdout if line.startswith("ready")), None)
        assert told is not None, ran.stderr.read()
        _, pid, folder = told.split()
        assert Path(folder, "logs/codec.log").exists() and Path(f"/proc/{pid}").exists()
        ran.send_signal(number)
        ran.send_signal(number)  # as Ctrl-C comes
        _, said = ran.communicate(timeout=60)
    assert ran.returncode == code and said == ""
    assert not Path(folder).exists() and not Path(f"/proc/{pid}").exists()


def test_callers_end_with_the_load_that_is_cancelled(monkeypatch):
    ended = []

    async def load(*_):
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    async def cancelled():
        task = asyncio.ensure_future(bench_chain.Chain._load("", Wish(1, 1.0, 0.0).plan(1.0, False), 1, 60.0))
        while len(asyncio.all_tasks()) < 3:  # this one, _load and what it waits for
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled() and ended

    monkeypatch.setattr(bench_chain.fleet, "run", load)
    asyncio.run(cancelled())


@pytest.mark.parametrize(("status", "code"), [(OK, 0), ("UNAVAILABLE", 1), (UNFINISHED, 1), (None, 1)])
def test_a_run_in_which_nobody_spoke_has_failed(monkeypatch, tmp_path, capsys, status, code):
    async def start(*_):
        return []

    async def measure_all(chain, out):
        if status is not None:
            chain.done.append(done(2, status=status))
            write(chain.done, {"address": "a chain"}, "s\n", out)

    monkeypatch.setenv("DEVICE", "cpu")
    monkeypatch.setattr(bench_chain, "start", start)
    monkeypatch.setattr(bench_chain, "measure_all", measure_all)
    assert asyncio.run(bench_chain.run(tmp_path, tmp_path)) == code
    assert ("no utterance of a point was spoken to its end" in capsys.readouterr().out) == bool(code)


def test_gpus_are_those_that_we_may_use(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert chain_layout.visible_gpus() == ["2", "5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert chain_layout.visible_gpus() == []


def test_a_point_is_streams_seconds_and_ramp():
    assert Wish.read("64:6") == Wish(64, 6.0, 3.0)
    assert Wish.read("1000:20:20") == Wish(1000, 20.0, 20.0)
    plan = Wish.read("1000:20:20").plan(20.0, True)
    assert (plan.streams, plan.duration_s, plan.ramp_up_s, plan.audio_s, plan.listens) == (1000, 20.0, 20.0, 20.0, True)


def done(streams, *, took_s=10.0, underruns=0, status=OK, first_s=0.1, is_whole=True, phase="1 backbone", use=None):
    """A point whose utterances, 20 s of audio each, all went alike."""
    wish = Wish(streams, 5.0, 2.0)
    records = [
        Record(0.0, 0.0, status=status, first_audio_s=first_s, took_s=took_s, audio_s=20.0, gaps_s=[0.1, 0.2],
               underruns=underruns, bytes=960_000, frames=250)
        for _ in range(streams)
    ]  # fmt: skip
    outcome = Outcome(wish.plan(20.0, False), 1, records, [0.01], wall_s=took_s, is_whole=is_whole)
    empty = {"wall_s": took_s, "gpus": {}, "processes": {}, "metrics": {}, "clients_cpu_s": 1.0}
    return Done(phase, wish, outcome.plan, point(outcome), empty | (use or {}))


@pytest.mark.parametrize(
    "spoilt",
    [
        {"underruns": 1},
        {"status": "UNAVAILABLE"},
        {"status": UNFINISHED, "is_whole": False},
        {"first_s": 5.0},
    ],
)
def test_a_point_is_carried_when_all_heard_all(spoilt):
    assert done(4).is_carried
    assert not done(4, **spoilt).is_carried


def test_who_was_cut_off_while_dry_counts_as_dry():
    assert done(4, status=UNFINISHED, underruns=2, is_whole=False).dry == 4


def test_how_long_a_point_may_take_is_learnt_from_the_one_before():
    wish, audio_s = Wish.read("512:6"), 20.0
    unknown = wish.expected_s(audio_s, None)
    assert unknown == pytest.approx(wish.longest_s(audio_s))
    quick = wish.expected_s(audio_s, done(256, took_s=2.0))  # 0.1 of real time, so 0.26 with margin at twice as many
    assert quick == pytest.approx(4.0 + 6.0 + 0.26 * 20.0)
    assert wish.expected_s(audio_s, done(256, took_s=30.0)) == pytest.approx(unknown)


def test_the_search_ends_when_it_is_known_to_a_tenth():
    tried = [done(512), done(1000, underruns=1)]
    while (streams := next_streams(tried, "1 backbone", 1024)) is not None:
        tried.append(done(streams, underruns=int(streams > 700)))
        assert len(tried) < 12
    most = carried(tried, "1 backbone")
    failed = min(one.wish.streams for one in tried if not one.is_carried)
    assert 630 <= most <= 700 < failed <= 1.1 * most


def test_the_search_goes_up_to_the_slots_and_down_from_failure():
    assert next_streams([done(512)], "1 backbone", 1024) == 768
    assert next_streams([done(1024)], "1 backbone", 1024) is None
    assert next_streams([done(64, underruns=1)], "1 backbone", 1024) == 8
    assert next_streams([done(1, underruns=1)], "1 backbone", 1024) is None
    assert next_streams([], "1 backbone", 1024) is None


def test_two_phases_are_compared():
    both = [done(500), done(1000, underruns=1), done(900, phase="2 backbones"), done(1000, took_s=5.0, phase="2 backbones")]
    text = ratio_text(both)
    assert "1 backbone: 500 streams carried" in text and "2 backbones: 1000 streams carried" in text
    assert "2 backbones : 1 backbone = 2.00 by streams carried, 2.00 by audio a second" in text


def page(**calls):
    """A metrics page as read_page gives it: calls of Generate and their waits."""
    told = {}
    for code, count in calls.items():
        labels = f"code={code},rpc_method=Generate,rpc_service=csm.backbone.v1.BackboneService"
        told |= {
            ("csm_rpc_duration_seconds_bucket", f"{labels},le=+Inf"): count,
            ("csm_rpc_duration_seconds_sum", labels): 1.0 * count,
        }
        waits = "rpc_method=Generate,stage=backbone"
        told |= {
            ("csm_stage_queue_duration_seconds_bucket", f"{waits},le=+Inf"): count,
            ("csm_stage_queue_duration_seconds_sum", waits): 0.5 * count,
        }
    return told


def test_use_is_what_came_between_two_readings():
    first = Reading(10.0, {"backbone": (7, {"all": 1.0, "main": 0.5}, 100.0)}, {"backbone": page(OK=3), "backbone-2": page(OK=1)})
    last = Reading(14.0, {"backbone": (7, {"all": 5.0, "main": 4.1}, 120.0)}, {"backbone": page(OK=10), "backbone-2": page(OK=1)})
    gpu = Gpu()
    for line in ("0, 99, 50, 1000, 300, 1980", "1, 10, 5, 900, 100, 1980", "name, of, something", "0, 97, 50, 1000, 300, 1980"):
        try:
            gpu._read_device(line)
        except ValueError:
            continue
    gpu.device = [(12.0, numbers) for _, numbers in gpu.device]
    use = use_between(first, last, {"backbone": {"all": 1.2, "main": 0.95}}, gpu)
    assert use["gpus"]["0"]["utilization.gpu"] == 98 and use["gpus"]["1"]["utilization.gpu"] == 10
    took = use["processes"]["backbone"]
    assert took["cores"] == 1.0 and took["threads"]["main"] == pytest.approx(0.9) and took["peak_threads"] == {"main": 0.95}
    assert spread(use) == {"backbone": {"backbone": 7, "backbone-2": 0}}
    told = "\n".join(limits(done(4, use=use)))
    assert "backbone: thread main had 0.95 of a core" in told and "GPU 0: busy 98 %" in told and "GPU 1" not in told
    assert "backbone: waited 500 ms for a turn" in told
    assert "gateways: 95 of 100 calls were taken in after up to 100 ms" in told  # first audio here, and at the gateway 0


def test_what_is_written_can_be_read(tmp_path):
    points = [done(4), done(8, status="UNAVAILABLE")]
    write(points, {"address": "a chain", "machine": "this one"}, "s\n", tmp_path)
    text, told = (tmp_path / "chain.md").read_text(), json.loads((tmp_path / "chain.json").read_text())
    assert "| 1 backbone | 4 " in text and "machine: this one" in text and "4 streams carried" in text
    assert [(one["phase"], one["carried"], one["load"]) for one in told["points"]] == [("1 backbone", True, 4), ("1 backbone", False, 8)]
    assert "8 streams: NOT carried" in brief(points[1])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chain.json", "chain.md", "gpu.csv"]


def test_logs_are_cut(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/codec.log").write_text("\n".join(f"line {number}" for number in range(100)))
    write_logs(tmp_path / "logs", tmp_path)
    lines = (tmp_path / "logs.txt").read_text().splitlines()
    assert lines[0] == "==> codec.log" and lines[1] == "line 70" and lines[-1] == "line 99"


def test_children_are_known_by_where_they_listen():
    with subprocess.Popen(
        [sys.executable, "-c", "print(flush=True); input()"], env=os.environ | {"CSM_LISTEN": "127.0.0.1:9"},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as child:  # fmt: skip
        child.stdout.readline()  # before, the kernel may not yet show its environment
        assert children()[child.pid] == "127.0.0.1:9"
        child.stdin.close()
    assert child.pid not in children()


@pytest.mark.slow
def test_all_of_it_with_two_of_each_stage(tmp_path):
    env = os.environ | {
        "BUNDLE": "embedded", "DEVICE": "cpu", "SLOTS": "4", "COMPARE": "all", "SEARCH": "0", "POINTS": "1:1", "AUDIO_S": "2",
        "OUT": str(tmp_path), "PYTHON": sys.executable, "WHEELS": str(tmp_path), "LIMIT_S": "200", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    ran = subprocess.run([SCRIPT], env=env, capture_output=True, text=True, timeout=250)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    told = json.loads((tmp_path / "chain.json").read_text())
    assert [(one["phase"], one["load"]) for one in told["points"]] == [("1 backbone", 1), ("2 backbones", 2)]
    assert all(one["ok"] and not one["errors"] and not one["miscounted"] for one in told["points"])
    assert not (tmp_path / "logs.txt").exists()
