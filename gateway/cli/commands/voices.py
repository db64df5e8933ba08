"""`csm voices`."""

from __future__ import annotations

import asyncio
from typing import Any

import click
import grpc
from csm.voice.v1 import voice_pb2
from csm_client import exceptions
from rich import box
from rich.table import Table

from gateway.cli import connection
from gateway.cli.errors import CommandError
from gateway.cli.execution import Options, execute
from gateway.cli.options import HELP, input_bytes, remote
from gateway.cli.terminal import PlainConsole, plain, plain_line

NOISE = "This bundle's weights are random: what it says is noise."


@click.group("voices", context_settings=HELP, invoke_without_command=True)
@remote
@click.pass_context
def command(context: click.Context, **options: Any) -> int:
    """List the voices, the bundle and the version of the deployment; keep voices of your own."""
    if context.invoked_subcommand is None:
        return execute(_voices, options)
    return 0


@command.command("add", context_settings=HELP)
@click.argument("name")
@click.argument("clip", metavar="FILE")
@click.option("--transcript", required=True, help="What the clip says, word for word.")
@click.option("--consent", required=True, metavar="TEXT", help="How the person in the clip agreed.")
@click.option("--speaker", type=int, help="The speaker number of its prompt (default 0).")
@click.option("--language", help="Default: the bundle's.")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="A note of your own; may be repeated.")
@remote
def add(**options: Any) -> int:
    """Keep the voice of a clip of 1 to 30 seconds under NAME."""
    return execute(_add, options)


@command.command("show", context_settings=HELP)
@click.argument("name")
@remote
def show(**options: Any) -> int:
    """Show one voice."""
    return execute(_show, options)


@command.command("rm", context_settings=HELP)
@click.argument("name")
@remote
def remove(**options: Any) -> int:
    """Forget a voice and its clip."""
    return execute(_remove, options)


async def _add(args: Options) -> int:
    labels = {}
    for label in args.labels:
        key, equals, value = label.partition("=")
        if not (key and equals):
            raise CommandError(f"--label {label}: is not KEY=VALUE")
        labels[key] = value
    clip = await asyncio.to_thread(input_bytes, args.clip)
    async with connection.client(args) as client:
        voice = await client.named_voices.create(
            args.name,
            transcript=args.transcript,
            audio=clip,
            consent_statement=args.consent,
            speaker=args.speaker,
            language=args.language,
            labels=labels,
        )
    PlainConsole().print(plain_line(f'kept: csm say "Hello." --voice {voice.name} -o {voice.name}.wav'))
    return 0


async def _show(args: Options) -> int:
    async with connection.client(args) as client:
        voice = await client.named_voices.get(args.name)
    out = PlainConsole()
    for name, value in _rows(voice):
        out.print(plain_line(f"{name:<11} {value}"))
    return 0


def _rows(voice: voice_pb2.Voice) -> list[tuple[str, str]]:
    rows = [("name", voice.name), ("speaker", str(voice.speaker)), ("language", voice.language)]
    if not voice.id:
        return [*rows, ("description", voice.description), ("owner", "the bundle")]
    return [
        *rows,
        ("owner", voice.owner),
        ("created", voice.create_time.ToJsonString()),
        ("clip", f"{voice.audio_duration.ToMilliseconds() / 1000:.2f} s"),
        ("transcript", voice.transcript),
        ("consent", voice.consent_statement),
        *((f"label {key}", value) for key, value in sorted(voice.labels.items())),
        ("id", voice.id),
    ]


async def _remove(args: Options) -> int:
    async with connection.client(args) as client:
        await client.named_voices.delete(args.name)
    PlainConsole().print(plain_line(f"forgotten: {args.name}"))
    return 0


async def _voices(args: Options) -> int:
    out = PlainConsole()
    async with connection.client(args) as client:
        answer = await client.voices()
        try:
            named = [voice for voice in await client.named_voices.list() if voice.id]
        except exceptions.ServerFault as error:
            if error.code is not grpc.StatusCode.UNIMPLEMENTED:
                raise
            named = []  # a deployment from before named voices
    bundle = answer.bundle
    out.print(
        f"Bundle `{bundle.bundle_id}`{f', server version {answer.version}' if answer.version else ''}:\n"
        f"{answer.description}\n"
        f"({bundle.codebooks} codebooks, {bundle.frame_rate_hz:g} frames/s, {bundle.sample_rate_hz} Hz"
        + (f", {answer.max_seq_len} tokens a request)" if answer.max_seq_len else ")")
    )
    if not answer.trained:
        out.print(NOISE)
    table = Table("speaker", "name", "description", "try", box=box.SIMPLE_HEAD, pad_edge=False)
    for voice in answer.voices:
        choice = f"--voice {voice.name}" if voice.name else f"--speaker {voice.speaker}"
        example = f'csm say "Hello." {choice} -o {voice.name or voice.speaker}.wav'
        table.add_row(str(voice.speaker), plain(voice.name), plain(voice.description), plain(example))
    for kept in named:
        example = f'csm say "Hello." --voice {kept.name} -o {kept.name}.wav'
        table.add_row(str(kept.speaker), plain(kept.name), "a voice of yours", plain(example))
    if not answer.voices:
        out.print("Any speaker number works; the voice comes from --context, or from a named voice.")
    if table.row_count:
        out.print(table, soft_wrap=False)
    return 0
