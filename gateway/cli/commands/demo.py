"""`csm demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gateway.cli.demo import demo
from gateway.cli.execution import Options, execute
from gateway.cli.options import HELP, OutputFile, model
from gateway.cli.terminal import PlainConsole


@click.command("demo", context_settings=HELP)
@model
@click.option("-o", "--output", type=OutputFile(".wav"), default=Path("out/demo.wav"), metavar="FILE.wav")
def command(**options: Any) -> int:
    """Start all, say a sentence, verify it, stop all."""
    if str(options["output"]) == "-":
        raise click.UsageError("-o: the demo writes a file, and its logs next to it")
    return execute(_demo, options)


async def _demo(args: Options) -> int:
    return await demo(args.model, args.output, PlainConsole(), PlainConsole(stderr=True))
