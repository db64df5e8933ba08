"""`csm verify`."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from typing import Any

import click
from csm.speech.v1 import speech_pb2

from gateway.cli import connection
from gateway.cli.blocking import in_daemon_thread
from gateway.cli.execution import Options, execute
from gateway.cli.options import HELP, remote
from gateway.cli.terminal import PlainConsole
from gateway.cli.verdict import verdict

_PIECE_BYTES = 1 << 18
_LONGEST_S = 86_400.0  # the search has limits of its own, and a gateway that died is noticed in seconds


@click.command("verify", context_settings=HELP)
@click.argument("file")
@click.option(
    "--speeds",
    is_flag=True,
    help="Search audio that is up to 6 % faster or slower too; takes about five times as long.",
)
@click.option(
    "--time-limit", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS", help="End the search after SECONDS."
)
@remote
def command(**options: Any) -> int:
    """Look for the watermark in a file: WAV of any length, FLAC, MP3, Ogg; - is standard input."""
    return execute(_verify, options)


async def _verify(args: Options) -> int:
    console = PlainConsole(stderr=True)
    args.timeout = args.timeout or _LONGEST_S

    def tell(progress: speech_pb2.VerifyWatermarkProgress) -> None:
        seconds = progress.searched.ToNanoseconds() / 1e9
        console.print(f"{seconds:.0f} s searched; marks so far: {len(progress.marks)}")

    # Standard input is not read through sys.stdin, whose lock a blocked thread would hold at exit.
    fd = sys.stdin.fileno() if args.file == "-" else await in_daemon_thread(os.open, args.file, os.O_RDONLY)
    try:
        first = await _read(fd, args.file)  # what cannot be read is said before a call is made
        async with connection.client(args) as client:
            with console.status("looking for the watermark"):
                answer = await client.verify_stream(
                    _pieces(fd, args.file, first), speeds=args.speeds, time_limit_s=args.time_limit, on_progress=tell
                )
    finally:
        if args.file != "-":
            os.close(fd)
    PlainConsole().print(verdict(answer))
    return 0 if answer.found else 1


async def _pieces(fd: int, name: str, first: bytes) -> AsyncIterator[bytes]:
    piece = first
    while piece:
        yield piece
        piece = await _read(fd, name)


async def _read(fd: int, name: str) -> bytes:
    """Raises: OSError that names the file."""
    try:
        return await in_daemon_thread(os.read, fd, _PIECE_BYTES)
    except OSError as error:  # a folder opens, and cannot be read
        raise OSError(error.errno, error.strerror, name) from None
