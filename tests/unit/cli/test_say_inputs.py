"""Where `csm say` and `csm verify` read and write: files, standard streams, pipes; voices by name; caps; deployments."""

import asyncio
import fcntl
import io
import os
import re
import signal
import struct
import subprocess
import sys
import termios
import wave
from pathlib import Path

import av
import pytest
from csm.common.v1 import common_pb2

from gateway.cli.wav import HEADER_BYTES
from support.fake_speech import FRAME, RATE_HZ, FakeSpeech, serving, tone

SPEECH = 5 * tone(FRAME)


@pytest.fixture
async def served(tmp_path):
    """(fake, run): run(command line for bash, standard input) gives exit code, output, error output."""

    async def run(line, stdin=b""):
        (tmp_path / "bin").mkdir(exist_ok=True)
        script = tmp_path / "bin/csm"
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m gateway.cli "$@"\n')
        script.chmod(0o755)
        env = {
            "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin",
            "CSM_STATE_DIR": str(tmp_path / "state"),
            "CSM_ADDRESS": address,
            "PYTHONPATH": ":".join(sys.path),
        }
        process = await asyncio.create_subprocess_exec(
            "bash", "-c", line, cwd=tmp_path, env=env,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        out, err = await asyncio.wait_for(process.communicate(stdin), 60)
        return process.returncode, out, err.decode()

    async with serving() as (fake, address):
        run.address = address
        yield fake, run


def pcm(wav):
    """The samples of a WAV whose header may leave its length open."""
    with wave.open(io.BytesIO(wav)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (RATE_HZ, 1, 2)
        return file.readframes(file.getnframes())


@pytest.mark.parametrize(
    ("line", "stdin"),
    [
        ("csm say - -o out.wav", b"Hello there.\n"),
        ("csm say --file - -o out.wav", b"Hello there.\r\n"),
        ("csm say --file - -o out.wav", b"\xef\xbb\xbfHello there."),
        ("csm say --file text.txt -o out.wav", b""),
        ("csm say --file <(cat text.txt) -o out.wav", b""),
        ("cat text.txt | csm say --file /dev/stdin -o out.wav", b""),
        ("csm say -o out.wav -- 'Hello there.'", b""),
    ],
)
async def test_text_from_a_file_a_pipe_and_standard_input(served, tmp_path, line, stdin):
    fake, run = served
    (tmp_path / "text.txt").write_text("Hello there.\n")
    code, _, err = await run(line, stdin)
    assert (code, err) == (0, "")
    assert fake.requests[0].utterance.text == "Hello there."
    assert pcm((tmp_path / "out.wav").read_bytes()) == SPEECH


async def test_a_long_text_has_a_longer_time(served, tmp_path):
    fake, run = served
    (tmp_path / "book.txt").write_text("x" * 4_000)
    assert (await run("csm say --file book.txt -o out.wav"))[0] == 0
    assert 1000 < fake.remaining_s[0] <= 1120 + 12, "120 s and a quarter for each character; gRPC rounds up by 1 %"
    assert (await run("csm say --file book.txt -o out.wav --timeout 30"))[0] == 0
    assert 20 < fake.remaining_s[-2] <= 31


async def test_lines_within_a_text_stay(served, tmp_path):
    fake, run = served
    (tmp_path / "book.txt").write_text("One.\n\nTwo – naïve.\n")
    assert (await run("csm say --file book.txt -o out.wav"))[0] == 0
    assert fake.requests[0].utterance.text == "One.\n\nTwo – naïve."


@pytest.mark.parametrize(
    ("line", "stdin", "words"),
    [
        ("csm say - -o out.wav", b"caf\xe9", "standard input: not UTF-8 text (byte 0xe9 at 3)"),
        ("csm say --file none.txt -o out.wav", b"", "none.txt: No such file"),
        ("csm verify -", b"", None),
    ],
)
async def test_input_of_no_use_is_one_line(served, line, stdin, words):
    fake, run = served
    code, out, err = await run(line, stdin)
    if words is None:
        assert fake.requests[0].audio.wav == b""
    else:
        assert code == 2 and words in err and len(err.splitlines()) == 1 and not out
        assert not fake.requests


async def test_audio_goes_to_standard_output_and_words_to_standard_error(served, tmp_path):
    _, run = served
    code, out, err = await run("csm say hello -o -")
    assert code == 0 and pcm(out) == SPEECH
    assert "standard output: 0.40 s of speech, the model ended it" in err
    assert not list(tmp_path.glob("*.wav")) and not (tmp_path / "-").exists()


@pytest.mark.parametrize("line", ["csm say hello -o >(cat > copy.bin); wait", "csm say hello -o /dev/stdout 2>/dev/null | tail -c 999999 > copy.bin",
                                  "mkfifo p; cat p > copy.bin & csm say hello -o p; wait"])  # fmt: skip
async def test_audio_goes_into_pipes(served, tmp_path, line):
    _, run = served
    await run(line)
    for _ in range(100):
        if (tmp_path / "copy.bin").exists() and len((tmp_path / "copy.bin").read_bytes()) >= HEADER_BYTES + len(SPEECH):
            break
        await asyncio.sleep(0.05)
    assert pcm((tmp_path / "copy.bin").read_bytes()[: HEADER_BYTES + len(SPEECH)]) == SPEECH


async def test_a_pipe_gets_audio_before_the_speech_has_ended(served):
    fake, run = served
    _, out, err = await run("csm say endless -o - --timeout 20 | head -c 30000 | wc -c")
    assert out.strip() == b"30000" and "Traceback" not in err
    await asyncio.wait_for(fake.idle.wait(), 10)
    assert fake.running == 0, "who stops reading stops the speech"


def decoded(path, form=None, **options):
    """(tags, seconds by the header or None, seconds decoded) as FFmpeg reads a file."""
    with av.open(str(path), format=form, options=options) as file:
        stream = file.streams.audio[0]
        stated = None if stream.duration is None else float(stream.duration * stream.time_base)
        samples = sum(frame.samples for frame in file.decode(stream))
        return {**file.metadata, **stream.metadata}, stated, samples / stream.rate


@pytest.mark.parametrize(
    ("name", "form", "spread_s"),
    [
        ("out.wav", None, 0.0),
        ("out.flac", None, 0.0),
        ("out.mp3", None, 0.1),
        ("out.opus", None, 0.01),
        ("out.OGG", None, 0.01),
        ("out.ulaw", "mulaw", 0.001),
        ("out.alaw", "alaw", 0.001),
    ],
)
async def test_the_suffix_gives_the_format(served, tmp_path, name, form, spread_s):
    _, run = served
    code, out, err = await run(f"csm say hello -o {name}")
    assert (code, err) == (0, "") and f"{name}: 0.40 s of speech" in out.decode()
    tags, stated, seconds = decoded(tmp_path / name, form, **({"sample_rate": "8000"} if form else {}))
    assert seconds == pytest.approx(0.4, abs=spread_s + 1e-9)
    if form is None:
        assert stated == pytest.approx(0.4, abs=spread_s + 1e-9)
        assert "Synthetic speech by Sesame CSM" in " ".join(tags.values())


async def test_an_unknown_suffix_is_refused_with_the_list(served):
    _, run = served
    code, _, err = await run("csm say hello -o out.aac")
    assert code == 2
    assert "out.aac: what is written is .wav, .flac, .mp3, .opus, .ogg, .ulaw or .alaw" in " ".join(err.split())


async def test_a_pipe_takes_any_format(served, tmp_path):
    _, run = served
    code, _, _ = await run("csm say hello -o - --format mp3 > out.bin")
    assert code == 0
    assert decoded(tmp_path / "out.bin", "mp3")[2] == pytest.approx(0.4, abs=0.1)


async def test_play_hands_samples_to_a_player_and_keeps_the_file(served, tmp_path):
    _, run = served
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/pw-play").write_text('#!/bin/sh\necho "$@" > arguments; cat > played.bin\n')
    (tmp_path / "bin/pw-play").chmod(0o755)
    code, _, err = await run("csm say hello --play --rate 16000 -o out.wav")
    assert (code, err) == (0, "")
    assert (tmp_path / "played.bin").read_bytes() == SPEECH
    assert "--rate=16000" in (tmp_path / "arguments").read_text()
    assert len((tmp_path / "out.wav").read_bytes()) == HEADER_BYTES + len(SPEECH)
    code, out, _ = await run("csm say hello --play")
    assert code == 0 and b"played: 0.40 s of speech" in out


def handles(pid, number):
    """Whether the process has a handler of its own for the signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"^SigCgt:\t(\w+)$", status, re.MULTILINE)[1], 16) >> (number - 1) & 1


def unread(pipe):
    """Bytes that wait in a pipe."""
    return struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize(
    "line", ["csm say - -o out.wav", "csm verify -", "csm say endless -o p", "csm say endless -o -"]
)
async def test_a_signal_ends_it_though_a_pipe_blocks(served, tmp_path, line, number):
    fake, run = served
    await run("mkfifo p")  # which nothing reads
    env = {**os.environ, "CSM_STATE_DIR": str(tmp_path / "state"), "PYTHONPATH": ":".join(sys.path)}
    reading, writing = os.pipe()  # one that stays empty, or full
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway.cli", *line.split()[1:], "--address", run.address,
        cwd=tmp_path, env=env, stdin=reading, stdout=writing, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(60):
            while not handles(process.pid, signal.SIGHUP):
                await asyncio.sleep(0.02)
            if "endless" in line:
                await fake.begun.wait()
            while line.endswith("-o -") and unread(reading) < 50_000:
                await asyncio.sleep(0.02)
        process.send_signal(number)
        _, err = await asyncio.wait_for(process.communicate(), 60)
    finally:
        os.close(reading)
        os.close(writing)
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert (process.returncode, err) == (130, b"csm: interrupted\n")


async def test_clips_come_from_pipes(served, tmp_path):
    fake, run = served
    (tmp_path / "a.wav").write_bytes(b"RIFF of a file")
    line = "csm say hello -o out.wav --context '-:Is it?' --context \"1@$(echo <(cat a.wav)):Yes.\""
    code, _, err = await run("csm say hello -o out.wav --context '-:Is it?' --context 1@a.wav:Yes.", b"RIFF of a pipe")
    assert code == 0, err
    assert [turn.audio.wav for turn in fake.requests[0].utterance.context] == [b"RIFF of a pipe", b"RIFF of a file"]
    fake.requests.clear()
    code, _, err = await run("csm say hello -o out.wav --context 2@<(cat a.wav):Yes.")
    assert code == 0, err + line
    (turn,) = fake.requests[0].utterance.context
    assert (turn.speaker, turn.text, turn.audio.wav) == (2, "Yes.", b"RIFF of a file")


@pytest.mark.parametrize("line", ["csm verify -", "csm verify /dev/stdin", "csm verify <(cat)"])
async def test_verify_reads_pipes(served, line):
    fake, run = served
    assert (await run(line, b"RIFF of a pipe"))[0] == 0
    assert fake.requests[0].audio.wav == b"RIFF of a pipe"


async def test_say_says_who_answered(served):
    _, run = served
    _, out, _ = await run("csm say hello -o out.wav")
    last = out.decode().splitlines()[-1]
    assert last.startswith("spoken by 127.0.0.1:") and last.endswith("(bundle fake)")


async def test_voices_are_chosen_by_name(served):
    fake, run = served
    assert (await run("csm say hello -o out.wav --voice bOB"))[0] == 0
    (utterance,) = [request.utterance for request in fake.requests if hasattr(request, "utterance")]
    assert utterance.voice == "bOB" and not utterance.HasField("speaker")


@pytest.mark.parametrize(
    ("reason", "code", "words"),
    [
        (common_pb2.FINISH_REASON_MAX_LENGTH, 9, "0.40 s of speech, CUT at its cap: the text is not spoken to its end"),
        (common_pb2.FINISH_REASON_SILENCE, 0, "ended where the model had fallen silent"),
        (common_pb2.FINISH_REASON_END_OF_SPEECH, 0, "the model ended it"),
    ],
)
async def test_a_cut_is_in_the_line_and_in_the_exit_code(served, tmp_path, monkeypatch, reason, code, words):
    _, run = served
    whole = FakeSpeech._summary

    def summary(frames):
        found = whole(frames)
        found.finish_reason = reason
        return found

    monkeypatch.setattr(FakeSpeech, "_summary", staticmethod(summary))
    got, out, _ = await run("csm say hello -o out.wav --max-seconds 0.4")
    assert got == code and words in out.decode()
    assert pcm((tmp_path / "out.wav").read_bytes()) == SPEECH, "what there is was written"


# A container's arbitrary user: no entry in passwd, and any HOME or none.
NO_ENTRY = """
import pwd, sys
def getpwuid(uid): raise KeyError(uid)
pwd.getpwuid = getpwuid
from gateway.cli.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


async def as_nameless_user(tmp_path, home, *arguments):
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path), "TMPDIR": str(tmp_path)}
    env |= {} if home is None else {"HOME": home}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", NO_ENTRY, *arguments, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    _, err = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode, err.decode()


@pytest.mark.parametrize("home", [None, "", "/nonexistent"])
async def test_it_works_without_a_home_and_without_a_passwd_entry(tmp_path, home):
    async with serving() as (_, address):
        said = await as_nameless_user(
            tmp_path, home, "say", "hello", "-o", str(tmp_path / "out.wav"), "--address", address
        )
    assert said == (0, "")
    assert (tmp_path / f"csm-{os.getuid()}/last_request.json").exists()


async def test_a_state_folder_that_others_can_write_is_refused(tmp_path):
    folder = tmp_path / f"csm-{os.getuid()}"
    folder.mkdir()
    folder.chmod(0o777)
    code, err = await as_nameless_user(tmp_path, None, "voices")
    assert code == 1 and "set CSM_STATE_DIR" in err and len(err.splitlines()) == 1
