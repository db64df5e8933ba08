"""`csm verify`."""

from __future__ import annotations

from typing import Any

import click

from gateway.cli import connection
from gateway.cli.blocking import in_daemon_thread
from gateway.cli.execution import Options, execute
from gateway.cli.options import HELP, input_bytes, remote
from gateway.cli.terminal import PlainConsole
from gateway.cli.verdict import verdict


@click.command("verify", context_settings=HELP)
@click.argument("file")
@remote
def command(**options: Any) -> int:
    """Look for the watermark in a WAV file; FILE - is standard input."""
    return execute(_verify, options)


async def _verify(args: Options) -> int:
    clip = await in_daemon_thread(input_bytes, args.file)
    async with connection.client(args) as client:
        with PlainConsole(stderr=True).status("looking for the watermark"):
            answer = await client.verify(clip)
    PlainConsole().print(verdict(answer))
    return 0 if answer.found else 1
