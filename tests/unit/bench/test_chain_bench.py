"""bench_chain.py from its settings to its end, without a chain; `slow`: all of it, two of each stage, on the embedded bundle."""

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
from chain_points import Wish
from chain_report import write
from chain_setup import call_s, callers_cpus, check_settings, kind, out_folder

from gateway.cli.bench.record import OK, UNFINISHED
from services.runtime import tls
from support.sample_points import sample_point

SCRIPT = Path(__file__).parents[2] / "bench/bench_chain.sh"


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


def test_a_tokenizer_that_encodes_voice_prompts_is_on_a_gpu(monkeypatch):
    monkeypatch.setenv("PROMPT_S", "10")
    assert gpus(layout(counts(), ["0", "1"], {"watermark": 1})) == {
        "tokenizer": "0", "backbone": "0", "codec": "0", "watermark": "1",
    }  # fmt: skip


def test_services_of_another_checkout_run_its_code(monkeypatch, tmp_path):
    """What `python -m` finds first is the other checkout, though both have the module and the folder is this one's."""
    (tmp_path / "services").mkdir()
    (tmp_path / "services/__init__.py").touch()
    (tmp_path / "services/codec.py").write_text("print('the other one')")
    monkeypatch.setenv("CODE", str(tmp_path))
    made = layout(counts(), [], {})
    child = next(child for child in made.children({}) if child.name == "codec")
    said = subprocess.run(child.argv, env=os.environ | child.env, capture_output=True, text=True, timeout=20)
    assert said.stdout == "the other one\n"


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="the callers need a processor of their own")
def test_services_stay_on_their_processors(monkeypatch):
    monkeypatch.setenv("CPUS", "0")
    child = layout(counts(), [], {}).children({})[0]
    asks = (*child.argv[: child.argv.index("-m")], "-c", "import os; print(os.sched_getaffinity(0))")
    assert subprocess.run(asks, capture_output=True, text=True, timeout=20).stdout == "{0}\n"


def test_codec_and_watermark_come_after_the_backbone_with_mps(monkeypatch):
    for mps, priority, after in (("0", "1", set()), ("1", "0", set()), ("1", "1", {"codec", "watermark"})):
        monkeypatch.setenv("MPS", mps)
        monkeypatch.setenv("PRIORITY", priority)
        children = layout(counts(), [], {}).children({})
        assert {child.name for child in children if child.env.get("CUDA_MPS_CLIENT_PRIORITY") == "1"} == after


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="the callers need a processor of their own")
def test_callers_have_the_processors_that_are_left(monkeypatch):
    monkeypatch.setenv("CPUS", "0")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 5})
    assert callers_cpus() == {1, 5}
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})  # as taskset or a container may have it
    with pytest.raises(SystemExit, match="none of the processors"):
        callers_cpus()


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
        *(
            ("POINTS", text, "streams:seconds[:ramp]")
            for text in ("a:b", "0:2", "-1:2", "2:0", "2:nan", "2:4:5", "2:4:1:1", " ")
        ),
        ("POINTS_ALL", "1:2 x", "streams:seconds[:ramp]"),
        *(
            (name, text, "a whole number from 1 to 64")
            for name in ("REPLICAS", "CODECS", "GATEWAYS")
            for text in ("0", "-1", "x")
        ),
        ("CODEC_GPU", "-1", "a whole number from 0 to 63"),
        ("COMPARE", "2", "0, 1 or all"),
        ("LIMIT_S", "abc", "a whole number from 1 to 86400"),
        ("AUDIO_S", "inf", "a number from 0.08 to 600"),
        ("TRACED", "nan", "a number from 0 to 1"),
        ("CPUS", f"0-{os.cpu_count()}", "processors of this machine"),
        ("CPUS", "1-0-2", "processors of this machine"),
        ("CPUS", "1-0", "processors of this machine"),
        ("DEVICE", "gpu", "cuda or cpu"),
        ("BUNDLE", "nothing/there", "embedded, noise or a folder with a bundle.toml"),
        ("SHAPES_FOLDER", __file__, "a folder"),
        ("CODE", "nothing/there", "a checkout"),
        ("RECORD", __file__, "a folder"),
        ("RECORD_EVERY_S", "2", "1, 3, 5 or 15"),
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
    can = {
        "POINTS": "1 2:4:4",
        "COMPARE": "all",
        "WATERMARK_GPU": "0",
        "DEVICE": "cpu",
        "BUNDLE": "noise",
        "OUT": str(tmp_path / "a"),
    }
    for name, text in can.items():
        monkeypatch.setenv(name, text)
    check_settings()
    assert not (tmp_path / "a").exists()
    monkeypatch.setenv("REPLICAS", "1")  # one with one
    with pytest.raises(SystemExit, match="REPLICAS='1': must be 2 or more with COMPARE"):
        check_settings()
    monkeypatch.delenv("REPLICAS")
    monkeypatch.setenv("RECORD", str(tmp_path))
    with pytest.raises(SystemExit, match=r"RECORD='.*': cannot be used with COMPARE"):
        check_settings()


def test_callers_may_hold_conversations_or_bring_prompts(monkeypatch):
    assert (kind()["turns"], kind()["prompt_s"], call_s()) == (0, 0, 20)
    for name, value in {"TURNS": "6", "PAUSE_S": "0.5", "AUDIO_S": "5"}.items():
        monkeypatch.setenv(name, value)
    assert (kind()["turns"], kind()["pause_s"], call_s()) == (6, 0.5, 32.5)
    monkeypatch.setenv("POINTS", "4 3/s:5")
    with pytest.raises(SystemExit, match="TURNS='6': cannot be used with a rate among POINTS"):
        check_settings()
    monkeypatch.setenv("POINTS", "4")
    monkeypatch.setenv("POINTS_ALL", "3/s:5")
    with pytest.raises(SystemExit, match="TURNS='6': cannot be used with a rate among POINTS_ALL"):
        check_settings()
    monkeypatch.setenv("PROMPT_S", "10")
    with pytest.raises(SystemExit, match="TURNS='6': cannot be used with PROMPT_S"):
        check_settings()
    monkeypatch.setenv("TURNS", "0")
    monkeypatch.setenv("SHARED_PROMPT", "1")
    check_settings()
    assert (kind()["prompt_s"], kind()["shares_prompt"]) == (10, True)


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
    env = {
        "OUT": str(tmp_path / "out"),
        "PYTHON": sys.executable,
        "WHEELS": str(tmp_path),
        "DEVICE": "cpu",
        "LIMIT_S": "20",
    }
    with subprocess.Popen(
        [SCRIPT], env=os.environ | env | settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as ran:
        try:
            yield ran
        finally:
            ran.terminate()


@pytest.mark.parametrize(
    ("name", "text"), [("POINTS", "0:2"), ("LIMIT_S", "out[$(touch ${OUT}_ran)]"), ("BEGAN_S", "x")]
)
def test_nothing_begins_with_settings_that_cannot_be_used(tmp_path, name, text):
    with script(tmp_path, **{name: text}) as ran:
        _, said = ran.communicate(timeout=60)
    assert ran.returncode == 1 and said.startswith(f"{name}=") and said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


# The bench with another process in place of the services, and with points that never end.
ENDLESS = """
import asyncio, sys
import bench_chain
from gateway.cli.supervisor import Child, Supervisor

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
            chain.done.append(sample_point(2, status=status))
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
