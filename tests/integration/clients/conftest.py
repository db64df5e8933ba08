"""Ready clients in an environment of their own, `make clients-test`: they run as programs, in processes of their own."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

PROGRAMS = Path(__file__).parent / "programs"
EXAMPLES = Path(__file__).parents[3] / "examples" / "clients"
PYTHON = Path(sys.prefix) / "clients" / "bin" / "python"


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.clients)
            item.add_marker(pytest.mark.timeout(600))


class Program:
    """A running program. `result` waits for its last line, which is JSON."""

    def __init__(self, process):
        self._process = process

    async def output(self, timeout_s=180):
        """All that it printed. Fails when it fails."""
        try:
            out, err = await asyncio.wait_for(self._process.communicate(), timeout_s)
        except TimeoutError:
            self._process.kill()
            raise
        assert self._process.returncode == 0, err.decode()[-3000:]
        return out.decode()

    async def result(self, timeout_s=180):
        return json.loads((await self.output(timeout_s)).strip().splitlines()[-1])


@pytest.fixture
async def start(tmp_path):
    """Start a program of `programs/` or of examples/clients; dictionaries among the arguments go as JSON."""
    if not PYTHON.exists():
        pytest.skip("no clients are installed: make clients-test")
    processes = []

    async def start(name, *arguments, **environment):
        file = EXAMPLES / name if (EXAMPLES / name).exists() else PROGRAMS / name
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("CSM_", "OTEL_", "PYTHON"))}
        process = await asyncio.create_subprocess_exec(
            str(PYTHON),
            str(file),
            *(json.dumps(one) if isinstance(one, dict) else str(one) for one in arguments),
            cwd=tmp_path,
            env={**clean, **environment},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        processes.append(process)
        return Program(process)

    yield start
    for process in processes:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.fixture
async def run(start):
    """Start a program and wait for its result."""

    async def run(name, *arguments, **environment):
        return await (await start(name, *arguments, **environment)).result()

    return run
