"""`csm chat`."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from typing import Any

import click

from gateway.cli import connection
from gateway.cli.chat import RATE_HZ, Chat
from gateway.cli.execution import Options, execute
from gateway.cli.options import HELP, OutputFile, remote
from gateway.cli.player import Player
from gateway.cli.say import opened
from gateway.cli.terminal import PlainConsole


@click.command("chat", context_settings=HELP)
@click.option(
    "-o",
    "--output",
    type=OutputFile(".wav"),
    metavar="FILE.wav",
    help="Write what is spoken here; - is standard output.",
)
@click.option("--play", is_flag=True, help="Play it, by a player of this machine.")
@click.option("--voice", metavar="NAME", help="A voice by its name; `csm voices` lists them.")
@click.option("--speaker", type=int, help="A voice by its number (default 0).")
@click.option("--seed", type=int, help="The first turn's; each later turn takes the next number.")
@click.option(
    "--lines/--stream",
    default=None,
    help="Each line is a turn (default in a terminal), or all of the input is one, spoken as it comes.",
)
@remote
def command(**options: Any) -> int:
    """Talk: what you type or pipe in is spoken as it comes.

    A line that begins with a slash is a command: /say FILE "words" is what the other party said; /interrupt, like
    Ctrl-C, stops the turn that speaks.
    """
    if options["play"] == (options["output"] is not None):
        raise click.UsageError("give -o FILE.wav or --play")
    if options["voice"] is not None and options["speaker"] is not None:
        raise click.UsageError("--voice and --speaker cannot both be given")
    return execute(_chat, options)


async def _chat(args: Options) -> int:
    lines = os.isatty(sys.stdin.fileno()) if args.lines is None else args.lines
    out = PlainConsole(stderr=str(args.output) == "-")
    with ExitStack() as stack:
        sink = Player() if args.play else stack.enter_context(opened(args.output))
        async with connection.client(args) as client:
            async with client.converse(
                voice=args.voice, speaker=args.speaker, seed=args.seed, sample_rate_hz=RATE_HZ, encoding="pcm_s16le"
            ) as conversation:
                await Chat(conversation, sink, out, lines=lines).run()
    return 0
