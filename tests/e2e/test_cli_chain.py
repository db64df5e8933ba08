"""`csm` with the real five services: the demo, `up` and `say --trace` side by side, and nothing left behind."""

import asyncio
import os
import signal
import subprocess
import sys
import uuid
import wave
from pathlib import Path

import httpx
import numpy as np
import pytest

from models.bundle import load_bundle

ROWS = ("gateway StreamSynthesize", "tokenizer Tokenize", "backbone Generate", "codec Decode", "watermark Embed")
TRAINED = load_bundle("embedded").trained


class Csm:
    """Runs `csm` with a state folder of its own; knows its processes by a mark in their environment."""

    def __init__(self, folder: Path):
        self.folder, self._mark = folder, uuid.uuid4().hex
        self.started: list[asyncio.subprocess.Process] = []
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("CSM_", "OTEL_"))}
        self._env = {
            **clean,
            "CSM_STATE_DIR": str(folder / "state"),
            "CSM_TEST_MARK": self._mark,
            "COLUMNS": "80",
            "OMP_NUM_THREADS": "1",
        }

    async def start(self, *arguments):
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "gateway.cli",
            *arguments,
            cwd=self.folder,
            env=self._env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.started.append(process)
        return process

    async def __call__(self, *arguments):
        """(exit code, standard output, standard error)."""
        process = await self.start(*arguments)
        out, err = await process.communicate()
        return process.returncode, out.decode(), err.decode()

    def processes(self) -> dict[int, str]:
        """Process id → command line of all that still run."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if self._mark in (folder / "environ").read_text(errors="replace"):
                    command = (folder / "cmdline").read_text().replace("\0", " ").strip()
                    found[int(folder.name)] = command
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                pass
        return {pid: command for pid, command in found.items() if command}


@pytest.fixture
async def csm(tmp_path):
    running = Csm(tmp_path)
    yield running
    left = running.processes()
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    for process in running.started:
        await process.communicate()
    assert not left


def samples(path) -> np.ndarray:
    """float64 [T], full scale 1."""
    with wave.open(str(path)) as file:
        return np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32768


def assert_waterfall(out):
    lines = out.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("Where the time went"))
    assert "(trace " in lines[start] and "incomplete" not in lines[start]
    for row in ROWS:
        assert any(row in line and line.endswith("s") for line in lines[start:]), f"{row} is missing:\n{out}"
    for row in ("queue", "prefill", "first_mark"):
        assert any(line.strip().startswith(row) for line in lines[start:]), f"{row} is missing:\n{out}"
    assert all(len(line) <= 80 for line in lines[start + 1 :])


async def test_demo_says_shows_and_leaves_nothing(csm, tmp_path):
    code, out, err = await csm("demo")
    assert code == 0, out + err
    with wave.open(str(tmp_path / "out" / "demo.wav")) as file:
        assert file.getframerate() == 24_000
        assert file.getnframes() > 24_000 // 2
        assert any(file.readframes(file.getnframes())), "silence"
    assert ("noise" in out) is not TRAINED
    assert ("Watermark found" in out) is TRAINED
    assert_waterfall(out)
    assert not csm.processes()


async def test_up_serves_other_terminals_until_a_service_dies(csm, tmp_path):
    up = await csm.start("up", "--ephemeral")
    told = []
    while not told or not told[-1].startswith("ready: "):
        line = await asyncio.wait_for(up.stdout.readline(), 120)
        assert line, (await up.stderr.read()).decode()
        told.append(line.decode())
    for name in ("tokenizer", "backbone", "codec", "watermark", "gateway", "http"):
        assert any(line.split()[0] == name and "ready after" in line for line in told)

    url = next(word for line in told for word in line.split() if word.startswith("http://"))
    async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
        assert "<html" in (await client.get("/")).text
        assert [model["id"] for model in (await client.get("/v1/models")).json()["data"]] == ["embedded"]

    code, out, err = await csm("say", "Hello there.", "-o", "a.wav", "--seed", "1", "--max-seconds", "0.8", "--trace")
    assert code == (9 if "CUT at its cap" in out else 0), err
    assert_waterfall(out)
    code, out, err = await csm("trace", "-o", "page.html")
    assert (code, err) == (0, "") and "incomplete" not in out, out + err
    page = (tmp_path / "page.html").read_text()
    assert "OK · done" in page and "12 characters" in page and "embedded" in page and "Hello there" not in page
    assert all(
        row in page for row in (*ROWS, "queue", "prefill", "first_mark", "csm.speech.v1.SpeechService/StreamSynthesize")
    )
    assert page.count('class="chunk') >= 3 and "Chunks of audio" in page
    await csm("say", "Hello there.", "-o", "again.wav", "--seed", "1", "--max-seconds", "0.8")
    # The same frames; in what chunks they were decoded is a matter of timing, and costs a rounding.
    np.testing.assert_allclose(samples(tmp_path / "again.wav"), samples(tmp_path / "a.wav"), rtol=0, atol=1e-4)
    code, out, err = await csm(
        "say",
        "Well said.",
        "-o",
        "b.wav",
        "--rate",
        "16000",
        "--max-seconds",
        "0.4",
        "--context",
        "1@a.wav:Hello there.",
    )
    assert code == 9 and "CUT at its cap" in out, err
    with wave.open(str(tmp_path / "b.wav")) as file:
        assert (file.getframerate(), file.getnframes()) == (16_000, 6400)
    code, out, err = await csm("verify", "a.wav")
    assert (code, err) == (0 if TRAINED else 1, "")
    code, out, err = await csm("voices")
    assert code == 0 and "`embedded`" in out
    code, out, err = await csm("say", "x" * 100_001, "-o", "c.wav")
    assert code == 3 and len(err.splitlines()) == 1, err
    assert not (tmp_path / "c.wav").exists()
    code, out, err = await csm("trace", "-o", "refused.html")
    assert code == 0 and "Ended by INVALID_ARGUMENT" in out, out + err

    words = "The train to Lisbon leaves at half past seven."
    for name in ("said.flac", "said.mp3", "said.opus", "said.ogg"):
        code, out, err = await csm("say", words, "-o", name, "--voice", "emma", "--seed", "3")
        assert (code, err) == (0, "") and f"{name}: " in out
        code, out, err = await csm("verify", name)
        assert (code, err) == (0 if TRAINED else 1, ""), out
    consent = ("--transcript", words, "--consent", "It is the bundle's own voice.")
    code, out, err = await csm("voices", "add", "rita", "said.mp3", *consent)
    assert (code, err) == (0, "")
    code, out, err = await csm(
        "say", "Yes.", "-o", "d.wav", "--voice", "rita", "--context", f"said.opus:{words}", "--max-seconds", "0.8"
    )
    assert code in (0, 9) and err == "", err
    (tmp_path / "bad.flac").write_bytes(b"fLaC" + bytes(9_000))
    code, out, err = await csm("verify", "bad.flac")
    assert code == 3 and len(err.splitlines()) == 1 and "cannot be decoded" in err, err

    codec = next(pid for pid, command in csm.processes().items() if "services.codec" in command)
    os.kill(codec, signal.SIGKILL)
    _, err = await asyncio.wait_for(up.communicate(), 60)
    assert up.returncode == 1
    assert err.decode().startswith("csm: codec ended by SIGKILL")
    assert not csm.processes()
    gateway = next(line.split()[1] for line in told if line.split()[0] == "gateway")
    code, _, err = await csm("voices", "--address", gateway)
    assert code == 5 and "nothing listens" in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_up_stops_all_when_asked_even_before_it_is_ready(csm, number):
    up = await csm.start("up", "--ephemeral")
    assert b"Starting five services" in await up.stdout.readline()
    async with asyncio.timeout(60):
        while len(csm.processes()) < 7:
            await asyncio.sleep(0.01)
        up.send_signal(number)
        out, err = await up.communicate()
    assert (up.returncode, err) == (0, b""), err
    assert out.decode().endswith("All have stopped.\n")
    assert not csm.processes()
