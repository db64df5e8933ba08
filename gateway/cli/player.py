"""An audio player of this machine."""

from __future__ import annotations

import asyncio
import shutil
from contextlib import suppress

from gateway.cli.errors import CommandError

# Each takes 16-bit mono samples on its standard input; {rate} is theirs.
_PLAYERS = (
    ("pw-play", "--raw", "--format=s16", "--rate={rate}", "--channels=1", "-"),
    ("aplay", "-q", "-t", "raw", "-f", "S16_LE", "-r", "{rate}", "-c", "1"),
    ("ffplay", "-loglevel", "error", "-nodisp", "-autoexit", "-f", "s16le", "-ar", "{rate}", "-ch_layout", "mono", "-"),
    ("play", "-q", "-t", "raw", "-e", "signed", "-b", "16", "-r", "{rate}", "-c", "1", "-"),
)


class Player:
    """Plays 16-bit samples as they come."""

    def __init__(self) -> None:
        """Raises: CommandError when there is none."""
        found = [command for command in _PLAYERS if shutil.which(command[0])]
        if not found:
            raise CommandError(f"--play: no player here; one of {', '.join(one[0] for one in _PLAYERS)} is needed")
        self._command = found[0]
        self._process: asyncio.subprocess.Process | None = None

    async def write(self, data: bytes, sample_rate_hz: int) -> None:
        """Play what comes. It waits while the player has enough."""
        if self._process is None:
            command = [part.format(rate=sample_rate_hz) for part in self._command]
            self._process = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.PIPE)
        assert self._process.stdin is not None
        with suppress(BrokenPipeError, ConnectionResetError):
            self._process.stdin.write(data)
            await self._process.stdin.drain()

    async def stop(self) -> None:
        """Be silent at once."""
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def finish(self, sample_rate_hz: int, samples: int) -> None:
        """Let what is there be heard."""
        process, self._process = self._process, None
        if process is not None and process.stdin is not None:
            process.stdin.close()
            await process.wait()
