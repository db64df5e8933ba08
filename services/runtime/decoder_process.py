"""The other end of `decoder_child`: a process that decodes one file after another. Knows no numpy.

Started with the first file, kept for the next. A file that takes too long, too much memory, or its decoder down with
it is refused like any other bad file; the next file gets a new process.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import struct
import subprocess
import sys
import threading
import time
from dataclasses import dataclass

UNKNOWN_FRAMES = 2**63 - 1  # libsndfile's own, of a file whose header leaves its length open
_STEP_TIMEOUT_S = 30.0  # to open a file, or to decode a second of it
_MAX_IDLE = 2  # processes kept for the next file
_HEADER = struct.Struct("<IIq")


class DecodeError(ValueError):
    """The file cannot be decoded; the message says why."""


@dataclass(frozen=True)
class FileInfo:
    """What a file says of itself. frames: samples of each channel, or UNKNOWN_FRAMES."""

    sample_rate_hz: int
    channels: int
    frames: int


class DecoderProcess:
    """Decodes one file at a time: `open`, `read` until nothing comes, `close`. For one thread at a time."""

    def __init__(self, timeout_s: float = _STEP_TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._deadline = 0.0
        self._process = subprocess.Popen(
            [sys.executable, "-m", "services.runtime.decoder_child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_environment(),
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._in, self._out = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._in, False)
        self._is_open = False

    @property
    def pid(self) -> int:
        return self._process.pid

    def open(self, data: bytes) -> FileInfo:
        """Raises: DecodeError."""
        self._is_open = True
        self._deadline = time.monotonic() + self._timeout_s
        self._send(struct.pack("<Q", len(data)))
        self._send(data)
        return FileInfo(*_HEADER.unpack(self._answer()))

    def read(self) -> bytes:
        """Up to a second of interleaved float32 samples; nothing at the end. Raises: DecodeError."""
        self._deadline = time.monotonic() + self._timeout_s
        self._send(b"R")
        return self._answer()

    def close(self) -> None:
        """Keep the process for another file, if it lives."""
        if not self._is_open:
            return
        self._is_open = False
        if self._process.poll() is None:
            try:
                self._deadline = time.monotonic() + self._timeout_s
                self._send(b"C")
            except DecodeError:
                return
            with _idle_lock:
                if len(_idle) < _MAX_IDLE:
                    _idle.append(self)
                    return
        self.kill()

    def kill(self) -> None:
        """End the process and reap it."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def is_alive(self) -> bool:
        """Whether it can take another file."""
        return self._process.poll() is None

    def _send(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            self._wait(self._in, select.POLLOUT)
            try:
                left = left[os.write(self._in, left) :]
            except BlockingIOError:
                continue
            except OSError:
                self._fail()

    def _answer(self) -> bytes:
        kind, size = struct.unpack("<cI", self._take(5))
        data = self._take(size)
        if kind == b"E":
            raise DecodeError(data.decode("utf-8", "replace"))
        return data

    def _take(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            self._wait(self._out, select.POLLIN)
            part = os.read(self._out, min(size - len(data), 1 << 20))
            if not part:
                self._fail()
            data += part
        return bytes(data)

    def _wait(self, fd: int, events: int) -> None:
        poll = select.poll()  # select() takes no number above 1023, which a server with many callers passes
        poll.register(fd, events)
        left = self._deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            self.kill()
            raise DecodeError(f"takes more than {self._timeout_s:g} s to decode")

    def _fail(self) -> None:
        self.kill()
        raise DecodeError("is damaged: its decoder failed")


def _environment() -> dict[str, str]:
    """What it takes to import; no secret of the server."""
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "PATH") if name in os.environ}
    return {**kept, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "OMP_NUM_THREADS": "1"}


_idle: list[DecoderProcess] = []
_idle_lock = threading.Lock()


@atexit.register
def end_idle() -> None:
    """End the processes that wait for a file."""
    with _idle_lock:
        ended, _idle[:] = list(_idle), []
    for process in ended:
        process.kill()


def open_decoder() -> DecoderProcess:
    """A process for one file: one that waits, or a new one."""
    while True:
        with _idle_lock:
            process = _idle.pop() if _idle else None
        if process is None:
            return DecoderProcess()
        if process.is_alive():
            return process
        process.kill()
