"""The command as its users meet it: a process with arguments, output, files and an exit code."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import wave
from pathlib import Path

import click
import numpy as np
import pytest
from csm.speech.v1 import speech_pb2
from csm.version import __version__

from gateway.cli import state
from gateway.cli.__main__ import main
from gateway.cli.options import Context, milliseconds
from gateway.cli.say import replacing
from gateway.cli.trace.spans import Event, Span, TraceStore
from services.runtime.audio import wav_bytes
from support.fake_speech import FRAME, RATE_HZ, serving, tone


class Csm:
    """Runs `csm`; it finds no `csm up` of another test."""

    def __init__(self, folder: Path, address: str):
        self.folder, self.address = folder, address
        self.state = folder.with_name(f"{folder.name}-state")
        self.env = {"PATH": "/usr/bin:/bin", "CSM_STATE_DIR": str(self.state), "COLUMNS": "80"}

    async def start(self, *arguments):
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "gateway.cli",
            *arguments,
            cwd=self.folder,
            env=self.env | {"CSM_ADDRESS": self.address, "PYTHONPATH": ":".join(sys.path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    async def __call__(self, *arguments):
        """(exit code, standard output, standard error)."""
        process = await self.start(*arguments)
        out, err = await asyncio.wait_for(process.communicate(), 60)
        return process.returncode, out.decode(), err.decode()


@pytest.fixture
async def served(tmp_path):
    async with serving() as (fake, address):
        yield fake, Csm(tmp_path, address)


async def test_say_writes_a_wav_that_others_read(served, tmp_path):
    fake, csm = served
    code, out, err = await csm("say", "hello", "-o", "out.wav", "--speaker", "2", "--seed", "5", "--max-seconds", "1.5")
    assert (code, err) == (0, "")
    with wave.open(str(tmp_path / "out.wav")) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (RATE_HZ, 1, 2)
        assert file.readframes(file.getnframes()) == 5 * tone(FRAME)
    assert out.splitlines()[0] == "out.wav: 0.40 s of speech, the model ended it, seed 7"
    assert out.splitlines()[1].startswith("first audio after ")
    utterance = fake.requests[0].utterance
    assert (utterance.text, utterance.speaker, utterance.sampling.seed, utterance.max_audio_ms) == ("hello", 2, 5, 1500)
    assert not list(tmp_path.glob(".*.part"))


async def test_say_sends_its_context(served, tmp_path):
    fake, csm = served
    clip = wav_bytes(np.zeros(10, np.float32), 8000)
    (tmp_path / "a.wav").write_bytes(clip)
    context = ("--context", "a.wav:Is it 10:30?", "--context", "7@a.wav:Yes.")
    code, _, err = await csm("say", "hello", "-o", "out.wav", "--speaker", "3", "--rate", "16000", *context)
    assert code == 0, err
    request = fake.requests[0]
    turns = [(turn.speaker, turn.text, turn.audio.wav) for turn in request.utterance.context]
    assert turns == [(3, "Is it 10:30?", clip), (7, "Yes.", clip)]
    with wave.open(str(tmp_path / "out.wav")) as file:
        assert file.getframerate() == 16000


@pytest.mark.parametrize(
    ("text", "code", "told"),
    [
        ("", 3, "utterance.text: must have 1 to 4000 characters, not 0"),
        ("overloaded", 4, "overloaded: utterances: all 2 permits are in use; try again in 1.5 s"),
        ("unavailable", 5, "backbone: gone"),
        ("break", 5, "codec: gone"),
        ("hang", 6, "not done within 0.5 s (--timeout)"),
        ("crash", 7, "internal error (RuntimeError)"),
    ],
)
async def test_failures_are_one_line_and_a_code_and_leave_no_file(served, tmp_path, text, code, told):
    _, csm = served
    (tmp_path / "out.wav").write_bytes(b"what was there before")
    timeout = "0.5" if text == "hang" else "60"
    assert await csm("say", text, "-o", "out.wav", "--timeout", timeout) == (code, "", f"csm: {told}\n")
    assert (tmp_path / "out.wav").read_bytes() == b"what was there before"
    assert [path.name for path in tmp_path.iterdir()] == ["out.wav"]


async def test_nobody_there(tmp_path):
    code, out, err = await Csm(tmp_path, "127.0.0.1:1")("voices")
    assert (code, out) == (5, "")
    assert err.startswith("csm: nothing listens at 127.0.0.1:1 (connection refused)") and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("say", "hello"),
        ("say", "hello", "-o", "no/such/folder/out.wav"),
        ("say", "hello", "-o", "."),
        ("say", "hello", "-o", "out.wav", "--seed", "-1"),
        ("say", "hello", "-o", "out.wav", "--max-seconds", "nan"),
        ("say", "hello", "-o", "out.wav", "--context", "missing.wav:words"),
        ("verify", "missing.wav"),
        ("up", "--port", "5", "--ephemeral"),
        ("say",),
        ("say", "hello", "--file", "text.txt", "-o", "out.wav"),
        ("say", "hello", "-o", "out.wav", "--voice", "a", "--speaker", "1"),
        ("say", "-", "--context", "-:words", "-o", "out.wav"),
        ("say", "hello", "-o", "out.aac"),
        ("say", "hello", "-o", "out.mp3", "--play"),
        ("say", "hello", "-o", "out.mp3", "--format", "flac"),
        ("say", "hello", "-o", "out"),
        ("say", "hello", "-o", "out.wav", "--addres", "x:1"),
        ("say", "hello", "-o", "out.wav", "--address", "http://127.0.0.1:50050"),
        ("say", "hello", "-o", "out.wav", "--address", "speech.example"),
        ("trace", "-o", "p.pdf"),
        ("nonsense",),
    ],
)
async def test_a_wrong_command_line_is_refused_before_any_call(served, tmp_path, arguments):
    fake, csm = served
    code, out, err = await csm(*arguments)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1 and err.startswith("csm"), err
    assert not fake.requests
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGHUP, 130)])
async def test_a_signal_cancels_the_call_and_leaves_no_file(served, tmp_path, number, code):
    fake, csm = served
    process = await csm.start("say", "endless", "-o", "out.wav")
    await fake.begun.wait()
    process.send_signal(number)
    _, err = await asyncio.wait_for(process.communicate(), 10)
    assert (process.returncode, err) == (code, b"csm: interrupted\n")
    await asyncio.wait_for(fake.idle.wait(), 5)
    assert not list(tmp_path.iterdir())


async def test_speech_that_ends_at_once_is_an_empty_wav(served, tmp_path):
    code, out, _ = await served[1]("say", "nothing to say", "-o", "out.wav")
    assert code == 9
    assert "no audio, the model ended it before the first frame" in out
    with wave.open(str(tmp_path / "out.wav")) as file:
        assert file.getnframes() == 0


async def test_trace_is_drawn_from_the_store_of_csm_up(served, tmp_path):
    _, csm = served
    folder = csm.state
    state.register(state.Running(csm.address, os.getpid(), str(folder / "traces")), folder)
    store = TraceStore(folder / "traces")
    event = Event("first_output", 4 * 10**7, {"stage": "watermark"})
    store.add("ab" * 16, Span("gateway", "Speech/StreamSynthesize", "server", "1", "", 0, 10**8, events=(event,)))
    store.add("ab" * 16, Span("backbone", "prefill", "internal", "2", "1", 10**7, 3 * 10**7))
    code, out, err = await csm("say", "hello", "-o", "out.wav", "--trace")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert f"Where the time went (trace {'ab' * 16}):" in lines
    assert any(line.startswith("gateway StreamSynthesize") and line.endswith("100 ms") for line in lines)
    assert any(line.startswith("  prefill") and line.endswith("20 ms") for line in lines)
    assert all(len(line) <= 80 for line in lines)


async def test_a_broken_request_shows_its_trace_too(served, tmp_path):
    _, csm = served
    folder = csm.state
    state.register(state.Running(csm.address, os.getpid(), str(folder / "traces")), folder)
    failed = Span("gateway", "Speech/StreamSynthesize", "server", "1", "", 0, 10**8, error="UNAVAILABLE: codec: gone")
    TraceStore(folder / "traces").add("ab" * 16, failed)
    code, out, err = await csm("say", "break", "-o", "out.wav", "--trace")
    assert (code, err) == (5, "csm: codec: gone\n")
    assert out.splitlines()[-1] == "✗ gateway StreamSynthesize: UNAVAILABLE: codec: gone"


async def test_trace_draws_the_last_request(served, tmp_path):
    _, csm = served
    folder = csm.state
    state.register(state.Running(csm.address, os.getpid(), str(folder / "traces")), folder)
    span = Span("gateway", "Speech/StreamSynthesize", "server", "1", "", 0, 10**8, attributes={"csm.bundle": "b<>"})
    TraceStore(folder / "traces").add("ab" * 16, span)
    assert (await csm("say", "Hello <all>.", "-o", "out.wav"))[0] == 0
    code, out, err = await csm("trace")
    assert (code, err) == (0, "")
    assert out.splitlines() == [f"trace-abababab.html: trace {'ab' * 16}, the last `csm say`", "Took 100 ms."]
    page = (tmp_path / "trace-abababab.html").read_text()
    assert "ab" * 16 in page and "b&lt;&gt;" in page and "Hello" not in page
    code, out, _ = await csm("trace", "abab", "-o", "p.html", "--text", "Hello <all>.")
    assert code == 0 and "Hello &lt;all&gt;." in (tmp_path / "p.html").read_text()
    code, out, _ = await csm("trace", "--list")
    assert (code, out) == (0, f"{'ab' * 16}  1970-01-01 00:00:00     100 ms  OK                 StreamSynthesize\n")


async def test_a_request_that_is_refused_is_known_by_the_id_it_was_sent_with(served, tmp_path):
    fake, csm = served
    assert (await csm("say", "", "-o", "out.wav"))[0] == 3
    sent = fake.metadata[0]["traceparent"].split("-")[1]
    assert state.last_request(csm.state) == state.LastRequest(sent, None)
    code, out, err = await csm("trace")
    assert (code, out) == (2, "") and err.startswith("csm: no traces in ") and len(err.splitlines()) == 1


async def test_trace_of_what_is_not_there_is_one_line_and_no_file(served, tmp_path):
    _, csm = served
    for arguments in (
        ("trace",),
        ("trace", "ab" * 16),
        ("trace", "x"),
        ("trace", "--file", "none.json"),
        ("trace", "--list", "--file", "."),
    ):
        code, out, err = await csm(*arguments, "-o", "p.html")
        assert (code, out) == (2, "") and err.startswith("csm: ") and len(err.splitlines()) == 1, err
    assert not list(tmp_path.iterdir())


async def test_trace_falls_back_to_the_summary_and_says_so(served):
    code, out, _ = await served[1]("say", "hello", "-o", "out.wav", "--trace")
    assert code == 0
    assert "by the answer's summary (no `csm up` here has its trace)" in out
    assert any(line.startswith("  backbone") and line.endswith("180 ms") for line in out.splitlines())


@pytest.mark.parametrize(
    ("found", "detectable", "code", "told"),
    [
        (True, True, 0, "found at 0.12 s"),
        (False, True, 1, "No watermark found"),
        (False, False, 1, "nets are untrained"),
    ],
)
async def test_verify_answers_with_words_and_a_code(served, tmp_path, found, detectable, code, told):
    fake, csm = served
    fake.found, fake.detectable = found, detectable
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    got, out, err = await csm("verify", "a.wav")
    assert (got, err) == (code, "")
    assert told in out and ("0.97" if found else "0.25") in out and "0.73" in out
    assert fake.requests[0].audio.wav == b"RIFF"


async def test_voices_come_with_an_example_that_parses(served):
    fake, csm = served
    fake.voices.append(speech_pb2.Voice(speaker=1, name="bob", description="[bold] as brass"))
    fake.trained, fake.max_seq_len = False, 2048
    code, out, _ = await csm("voices")
    assert code == 0
    assert out.startswith("Bundle `fake`:\na tone\n(8 codebooks, 12.5 frames/s, 24000 Hz, 2048 tokens a request)\n")
    assert "noise" in out and "[bold] as brass" in " ".join(out.split())
    assert 'csm say "Hello." --voice bob -o bob.wav' in " ".join(out.split())
    assert all(len(line) <= 80 for line in out.splitlines())


async def test_a_bundle_that_is_not_there_is_one_line(tmp_path):
    code, out, err = await Csm(tmp_path, "")("up", "--ephemeral", "--model", "no-such-bundle")
    assert (code, out) == (1, "")
    assert err.startswith("csm: bundle: ") and len(err.splitlines()) == 1


def test_context_takes_the_shortest_file_that_exists(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a:b.wav").write_bytes(b"")
    Path("1@a.wav").write_bytes(b"")
    context = Context()
    assert context("a:b.wav:c:d") == (None, "a:b.wav", "c:d")
    assert context("12@a:b.wav:") == (12, "a:b.wav", "")
    assert context("./1@a.wav:x") == (None, "./1@a.wav", "x")
    assert context("3@-:x") == (3, "-", "x")
    for wrong in ("a.wav", "b.wav:x", ":x", "-1@a:b.wav:x"):
        with pytest.raises(click.BadParameter):
            context(wrong)


def test_seconds_become_milliseconds_without_a_rest():
    assert [milliseconds(float(str(ms / 1000))) for ms in range(1, 90_001)] == list(range(1, 90_001))
    assert milliseconds(0.0001) == 1


def test_a_device_is_written_to_and_never_replaced(tmp_path):
    link = tmp_path / "null"
    link.symlink_to("/dev/null")
    with replacing(link) as file:
        file.write(b"x")
    assert link.is_symlink() and Path("/dev/null").is_char_device()


@pytest.mark.parametrize("command", ["", "say", "verify", "voices", "bench", "trace", "up", "demo", "completion"])
def test_h_is_help_everywhere(command, capsys):
    assert main([*command.split(), "-h"]) == 0
    short = capsys.readouterr().out
    assert short.startswith(f"Usage: csm {command}".rstrip())
    assert main([*command.split(), "--help"]) == 0
    assert capsys.readouterr().out == short


def test_without_a_command_it_prints_its_help(capsys):
    assert main([]) == 2
    assert "Commands:" in capsys.readouterr().err


def test_the_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"csm {__version__}\n"


def test_the_version_imports_no_more_than_click():
    code = "import sys; from gateway.cli.__main__ import main; main(['--version']); print({'grpc', 'rich', 'numpy', 'asyncio', 'services'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[1] == "set()"


def test_talking_to_a_gateway_imports_no_numbers_and_no_model():
    code = "import sys; import gateway.cli.commands.say, gateway.cli.commands.voices, gateway.cli.trace.command; print({'numpy', 'torch', 'soxr', 'grpc_health', 'grpc_status', 'cryptography'} & {n for n, m in sys.modules.items() if m})"
    block = "import sys; sys.modules.update(dict.fromkeys(['grpc_health', 'grpc_status', 'grpc_reflection', 'grpc_tools']));"
    run = subprocess.run([sys.executable, "-c", block + code], capture_output=True, text=True)
    assert run.stdout == "set()\n", run.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_script_that_asks_csm(shell, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert f"_CSM_COMPLETE={shell}_complete" in script
    if shutil.which(shell):
        check = "--no-execute" if shell == "fish" else "-n"
        subprocess.run([shell, check, "/dev/stdin"], input=script, text=True, check=True)


def test_completion_completes():
    env = {**os.environ, "_CSM_COMPLETE": "bash_complete", "COMP_WORDS": "csm say --max", "COMP_CWORD": "2"}
    run = subprocess.run([sys.executable, "-m", "gateway.cli"], env=env, capture_output=True, text=True)
    assert run.stdout.split() == ["plain,--max-seconds"]


def test_help_tells_the_exit_codes(capsys):
    assert main(["--help"]) == 0
    assert "4    the server is overloaded" in capsys.readouterr().out
