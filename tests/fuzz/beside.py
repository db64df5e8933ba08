"""A pytest plugin (`-p fuzz.beside --fuzz-calls 5000`): fuzzes five processes beside the tests.

The servers and their caller step back for the tests, so they take the processor time that these leave: tests wait for
timers and for each other. The run of tests ends when both have, and fails when the servers do.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO

import pytest

_NICENESS = "10"  # a tenth of a test's share: enough to answer within a call's time when tests use every core

_LONGER_S = 300  # than the tests, at most


class _Beside:
    """Lives in the process that hands out the tests."""

    def __init__(self, calls: int):
        self._calls = calls
        self._told: IO[str] = tempfile.TemporaryFile("w+")
        self._running: subprocess.Popen | None = None

    def pytest_sessionstart(self) -> None:
        self._running = subprocess.Popen(
            ["nice", "-n", _NICENESS, sys.executable, "-m", "fuzz", "--calls", str(self._calls)],
            cwd=Path(__file__).parents[1], stdout=self._told, stderr=subprocess.STDOUT, process_group=0,
        )  # fmt: skip

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if self._running is None:
            return
        if exitstatus not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            self._interrupt()
        try:
            failed = self._running.wait(_LONGER_S)
        except subprocess.TimeoutExpired:
            self._interrupt()
            failed = self._running.wait()
        if failed and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_unconfigure(self) -> None:
        """Also after a session that was interrupted before it had begun, which has no end."""
        if self._running is not None:
            self._interrupt()
            self._running.wait()

    def _interrupt(self) -> None:
        """As Ctrl-C does: the servers stop too."""
        if self._running is not None and self._running.poll() is None:
            os.killpg(self._running.pid, signal.SIGINT)

    def pytest_terminal_summary(self, terminalreporter) -> None:
        if self._running is None:
            return
        terminalreporter.write_sep("=", f"fuzzed calls: {'passed' if not self._running.returncode else 'FAILED'}")
        self._told.seek(0)
        terminalreporter.write(self._told.read())


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fuzz-calls", type=int, default=0, help="send that many fuzzed calls beside the tests")


def pytest_configure(config: pytest.Config) -> None:
    calls = config.getoption("--fuzz-calls")
    if calls and not hasattr(config, "workerinput") and not config.option.collectonly:
        config.pluginmanager.register(_Beside(calls), "fuzz-beside")
