"""`csm voices`: voices of one's own."""

import asyncio
import subprocess
import sys

import pytest

from support.fake_speech import serving


@pytest.fixture
async def csm(tmp_path):
    """(fake server, a function that runs `csm …`)."""
    async with serving() as (fake, address):

        async def run(*arguments):
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "gateway.cli", *arguments,
                cwd=tmp_path,
                env={"PATH": "/usr/bin:/bin", "CSM_STATE_DIR": str(tmp_path / "state"), "CSM_ADDRESS": address,
                     "PYTHONPATH": ":".join(sys.path)},
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )  # fmt: skip
            out, err = await asyncio.wait_for(process.communicate(), 60)
            return process.returncode, out.decode(), err.decode()

        yield fake, run


ADD = ("voices", "add", "ada", "clip.wav", "--transcript", "I am Ada.", "--consent", "I agree.")


async def test_a_voice_is_added_shown_listed_and_forgotten(csm, tmp_path):
    fake, run = csm
    (tmp_path / "clip.wav").write_bytes(b"RIFF of a file")
    code, out, err = await run(*ADD, "--speaker", "3", "--label", "mood=calm")
    assert code == 0, err
    assert "--voice ada" in out
    (request,) = fake.named.requests
    assert request.audio.wav == b"RIFF of a file" and request.speaker == 3 and dict(request.labels) == {"mood": "calm"}
    code, out, _ = await run("voices", "show", "ada")
    assert code == 0 and "I am Ada." in out and "I agree." in out
    code, out, _ = await run("voices")
    assert code == 0 and "a voice of yours" in out
    assert (await run("voices", "rm", "ada"))[0] == 0
    code, out, err = await run("voices", "show", "ada")
    assert code != 0 and "no voice 'ada'" in err and not out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((*ADD, "--label", "calm"), "KEY=VALUE"),
        (ADD, "clip.wav: No such file"),
        (ADD[:4], "--transcript"),
    ],
)
async def test_what_cannot_be_sent_is_one_line(csm, arguments, words):
    _, run = csm
    code, out, err = await run(*arguments)
    assert code == 2 and not out and words in err and len(err.splitlines()) == 1
