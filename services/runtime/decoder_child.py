"""Decodes FLAC, MP3 and Ogg for `decoder_process`, by libsndfile, within limits that the kernel holds.

In:  length (u64) and bytes of a file; then `R` for a block of samples, or `C` for no more of it; then the next file.
Out: `I`, length (u32) and rate (u32), channels (u32), frames (i64); `B`, length and samples; `E`, length and a reason.
"""

from __future__ import annotations

import io
import os
import resource
import signal
import struct

MAX_MEMORY_BYTES = 1 << 30  # of address space, of which Python and its libraries take 150 MB
FORMATS = {"FLAC", "OGG", "MP3"}
_IN, _OUT = 0, 1


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which closes the pipe when it ends
    os.nice(5)
    import numpy  # noqa: F401  # before the limit: its threads reserve address space
    import soundfile

    class Stream(soundfile.SoundFile):  # type: ignore[misc]  # it has no types
        """Read from front to end. A FLAC whose header leaves its length open cannot be seeked in, as is done else."""

        def seekable(self) -> bool:
            return False

    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while header := _take(8):
        (size,) = struct.unpack("<Q", header)
        data = _take(size)
        if len(data) < size:
            return
        try:
            with Stream(io.BytesIO(data)) as file:
                if file.format not in FORMATS:
                    raise ValueError(f"is {file.format_info}, which is not read")
                _send(b"I", struct.pack("<IIq", file.samplerate, file.channels, file.frames))
                while (command := _take(1)) == b"R":
                    block = file.read(file.samplerate, dtype="float32", always_2d=True)
                    _send(b"B", block.tobytes())
        except MemoryError:
            command = _refuse("takes too much memory to decode")
        except (RuntimeError, ValueError, OSError, TypeError, AssertionError) as error:  # soundfile's are RuntimeErrors
            command = _refuse(_reason(error))
        if command != b"C":
            return


def _reason(error: Exception) -> str:
    said = str(error).splitlines()[-1:] or [type(error).__name__]
    text = said[0].removeprefix("Error opening ").partition(": ")[2] or said[0]
    if text.startswith("File does not exist"):  # libsndfile's words for one whose length it cannot find
        text = "its length cannot be found."
    return f"cannot be decoded: {text}" if not text.startswith("is ") else text


def _refuse(reason: str) -> bytes:
    _send(b"E", reason[:300].encode())
    while (command := _take(1)) == b"R":
        _send(b"E", reason[:300].encode())
    return command


def _take(size: int) -> bytes:
    """Fewer bytes only at the end of the pipe."""
    parts = bytearray()
    while len(parts) < size:
        part = os.read(_IN, min(size - len(parts), 1 << 20))
        if not part:
            break
        parts += part
    return bytes(parts)


def _send(kind: bytes, data: bytes) -> None:
    left = memoryview(kind + struct.pack("<I", len(data)) + data)
    while left:
        left = left[os.write(_OUT, left) :]


if __name__ == "__main__":
    main()
