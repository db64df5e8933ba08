"""`csm chat` as a process, before a gateway over fake stages."""

from __future__ import annotations

import asyncio
import signal
import sys
import wave
from contextlib import asynccontextmanager

import numpy as np
from csm.speech.v1 import speech_pb2
from rich.console import Console

from gateway.cli.chat import Chat, Player
from services.runtime.audio import wav_bytes
from support.fake_stages import SAMPLES_PER_FRAME


@asynccontextmanager
async def chatting(chain, folder, *arguments):
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway.cli", "chat", "--address", chain.addresses["gateway"], "-o", "out.wav", *arguments,
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path), "CSM_STATE_DIR": str(folder / "state")},
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def until_line(process, part):
    async with asyncio.timeout(30):
        while part not in (line := (await process.stdout.readline()).decode()):
            assert line, (await process.stderr.read()).decode()
    return line


def samples_of(folder):
    with wave.open(str(folder / "out.wav")) as file:
        return file.getnframes()


async def test_piped_text_is_one_turn_spoken_as_it_comes(open_chain, probe, tmp_path):
    chain = await open_chain()
    async with chatting(chain, tmp_path) as process:
        text = "This comes first, in a café. And this is the rest.".encode()
        cut = text.index("é".encode()) + 1  # a character in two pieces
        process.stdin.write(text[:cut])
        await process.stdin.drain()
        process.stdin.write(text[cut:])
        process.stdin.close()
        out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, err.decode()
    assert "END_OF_SPEECH" in out.decode()
    assert samples_of(tmp_path) == 10 * SAMPLES_PER_FRAME * len(probe.requests)


async def test_each_line_is_a_turn_and_the_other_party_is_heard(open_chain, probe, tmp_path):
    chain = await open_chain()
    (tmp_path / "they.wav").write_bytes(wav_bytes(np.zeros(4800, np.float32), 24_000))
    async with chatting(chain, tmp_path, "--lines") as process:
        process.stdin.write(b'Hello.\n/say they.wav "Who is it?"\n/say nothere.wav "x"\nIt is me.\n')
        process.stdin.close()
        out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, err.decode()
    assert "heard: Who is it?" in out.decode() and "nothere.wav" in out.decode()
    said = [bytes(part.text.ids[2:-1]).decode() for part in probe.requests[-1].prompt if part.HasField("text")]
    assert said == ["Hello.", "Who is it?", "It is me."]
    assert samples_of(tmp_path) == 20 * SAMPLES_PER_FRAME


async def test_control_c_stops_the_turn_and_then_the_conversation(open_chain, probe, tmp_path):
    chain = await open_chain()
    probe.frames, probe.gate = 500, 10
    async with chatting(chain, tmp_path, "--lines") as process:
        process.stdin.write(b"A long turn.\n")
        await until_line(process, "A long turn.")
        process.send_signal(signal.SIGINT)
        await until_line(process, "interrupted after")
        await probe.until(lambda: not +probe.active)
        process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(process.wait(), 30) == 130


async def test_it_wants_somewhere_to_put_the_speech(open_chain, tmp_path):
    chain = await open_chain()
    async with chatting(chain, tmp_path, "--play") as process:
        _, err = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 2 and b"-o FILE.wav or --play" in err


async def test_input_that_is_no_text_ends_the_command_and_says_so(open_chain, tmp_path):
    chain = await open_chain()
    async with chatting(chain, tmp_path) as process:
        process.stdin.write(b"Hello. \xff")
        _, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 2 and b"not UTF-8" in err


class SilentPlayer(Player):
    def __init__(self):
        self.played = []

    async def write(self, pcm, sample_rate_hz):
        self.played.append(pcm)

    async def stop(self):
        pass


class NoConversation:
    turn = 0

    async def interrupt(self, heard_s, turn):
        pass


async def test_audio_on_its_way_is_not_played_after_an_interrupt():
    player = SilentPlayer()
    chat = Chat(NoConversation(), player, Console(quiet=True), lines=True)
    for turn, data in enumerate((b"ab", b"cd")):
        await chat._on_event(speech_pb2.TurnStarted(turn=turn))
        await chat._on_event(speech_pb2.TurnAudio(turn=turn, data=data))
        await chat._interrupt()
        await chat._on_event(speech_pb2.TurnAudio(turn=turn, data=b"late"))
    assert player.played == [b"ab", b"cd"]
