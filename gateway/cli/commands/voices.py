"""`csm voices`."""

from __future__ import annotations

from typing import Any

import click
from rich import box
from rich.table import Table

from gateway.cli import connection
from gateway.cli.execution import Options, execute
from gateway.cli.options import HELP, remote
from gateway.cli.terminal import PlainConsole, plain

NOISE = "This bundle's weights are random: what it says is noise."


@click.command("voices", context_settings=HELP)
@remote
def command(**options: Any) -> int:
    """List the voices of the deployment, its bundle and its version."""
    return execute(_voices, options)


async def _voices(args: Options) -> int:
    out = PlainConsole()
    async with connection.client(args) as client:
        answer = await client.voices()
    bundle = answer.bundle
    out.print(
        f"Bundle `{bundle.bundle_id}`{f', server version {answer.version}' if answer.version else ''}:\n"
        f"{answer.description}\n"
        f"({bundle.codebooks} codebooks, {bundle.frame_rate_hz:g} frames/s, {bundle.sample_rate_hz} Hz"
        + (f", {answer.max_seq_len} tokens a request)" if answer.max_seq_len else ")")
    )
    if not answer.trained:
        out.print(NOISE)
    if not answer.voices:
        out.print("Any speaker number works; the voice comes from --context.")
        return 0
    table = Table("speaker", "name", "description", "try", box=box.SIMPLE_HEAD, pad_edge=False)
    for voice in answer.voices:
        choice = f"--voice {voice.name}" if voice.name else f"--speaker {voice.speaker}"
        example = f'csm say "Hello." {choice} -o {voice.name or voice.speaker}.wav'
        table.add_row(str(voice.speaker), plain(voice.name), plain(voice.description), plain(example))
    out.print(table, soft_wrap=False)
    return 0
