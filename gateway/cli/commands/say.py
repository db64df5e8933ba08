"""`csm say`."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import click
from csm.speech.v1 import speech_pb2
from csm_client import ContextTurn, SpeechClient, exceptions
from csm_client.requests import Container, Encoding

from gateway.cli import connection
from gateway.cli.blocking import in_daemon_thread
from gateway.cli.errors import CommandError
from gateway.cli.execution import SAY_INCOMPLETE, Options, execute
from gateway.cli.options import (
    HELP,
    TIMEOUT_S,
    Context,
    OutputFile,
    Seconds,
    input_bytes,
    input_text,
    milliseconds,
    remote,
)
from gateway.cli.player import Player
from gateway.cli.say import Sink, TeeSink, listen, new_trace, opened, save_last_request, show_waterfall
from gateway.cli.terminal import PlainConsole, plain_line

# Suffix: container and sample encoding of what the gateway sends. A WAV is made here, of samples.
SUFFIXES: dict[str, tuple[Container, Encoding | None]] = {
    ".wav": ("raw", "pcm_s16le"),
    ".flac": ("flac", None),
    ".mp3": ("mp3", None),
    ".opus": ("ogg_opus", None),
    ".ogg": ("ogg_opus", None),
    ".ulaw": ("raw", "mulaw"),
    ".alaw": ("raw", "alaw"),
}
FORMATS = {suffix[1:]: layout for suffix, layout in SUFFIXES.items()}
_VOICES_S = 5.0
_CHARACTER_S = 0.25  # a character is 0.07 s of speech; this is for a slow machine


@click.command("say", context_settings=HELP)
@click.argument("text", required=False)
@click.option(
    "--file", "text_file", metavar="FILE.txt", help="Read the text from this file or pipe; - is standard input."
)
@click.option(
    "-o",
    "--output",
    type=OutputFile(*SUFFIXES),
    metavar="FILE",
    help=f"Write the speech here, in the format of its name: {', '.join(SUFFIXES)}; - is standard output, a pipe gets "
    "it as it is made.",
)
@click.option("--format", "form", type=click.Choice(list(FORMATS)), help="Of standard output or a pipe (default wav).")
@click.option("--play", is_flag=True, help="Play it as it is made, by a player of this machine.")
@click.option("--voice", metavar="NAME", help="A voice by its name; `csm voices` lists them.")
@click.option("--speaker", type=int, help="A voice by its number (default 0).")
@click.option(
    "--context",
    type=Context(),
    multiple=True,
    metavar="[SPEAKER@]FILE:TRANSCRIPT",
    help="An earlier turn: its audio file and its words, oldest first; by the speaking voice unless a number is in front.",
)
@click.option("--seed", type=int, help="The same seed and request give the same speech.")
@click.option("--temperature", type=float, help="Default 0.9.")
@click.option("--top-k", type=int, help="Default 50.")
@click.option(
    "--max-seconds", type=Seconds(), metavar="SECONDS", help="A cap: longer speech is cut there (exit code 9)."
)
@click.option(
    "--rate", type=int, metavar="HZ", help="Sample rate, 8000 to 48000 (default: the model's, or the format's own)."
)
@click.option("--trace", is_flag=True, help="Show where the time went.")
@remote
def command(**options: Any) -> int:
    """Speak TEXT into a file, or play it. TEXT - is standard input."""
    given = [options["text"] is not None, options["text_file"] is not None]
    if sum(given) != 1:
        raise click.UsageError("give TEXT or --file" if not any(given) else "TEXT and --file cannot both be given")
    if options["voice"] is not None and options["speaker"] is not None:
        raise click.UsageError("--voice and --speaker cannot both be given")
    if options["output"] is None and not options["play"]:
        raise click.UsageError("give -o FILE or --play")
    form = _format(options["output"], options["form"])
    if options["play"] and form != "wav":
        raise click.UsageError(f"--play goes with samples: leave -o away, or name a .wav, not {form}")
    readers = [options["text"], options["text_file"], *(name for _, name, _ in options["context"])]
    if readers.count("-") > 1:
        raise click.UsageError("standard input (-) can be read only once")
    return execute(_say, options)


async def _say(args: Options) -> int:
    to_stdout, form = str(args.output) == "-", _format(args.output, args.form)
    out, err = PlainConsole(stderr=to_stdout), PlainConsole(stderr=True)
    store = connection.traces(args)
    text = await in_daemon_thread(_text, args)
    if args.timeout is None:
        args.timeout = TIMEOUT_S + _CHARACTER_S * len(text)
    clips = [await in_daemon_thread(input_bytes, name) for _, name, _ in args.context]
    async with connection.client(args) as client:
        speaker = args.speaker or 0
        if args.voice is not None and any(who is None for who, _, _ in args.context):
            speaker = (await client.named_voices.get(args.voice)).speaker
        turns = [
            ContextTurn(speaker if who is None else who, words, clip)
            for (who, _, words), clip in zip(args.context, clips, strict=True)
        ]
        container, encoding = FORMATS[form]
        with ExitStack() as stack:
            trace_id = stack.enter_context(new_trace())
            player = Player() if args.play else None
            sinks: list[Sink] = [player] if player is not None else []
            if args.output is not None:
                sinks.append(stack.enter_context(opened(args.output, wav=form == "wav")))
            try:
                stream = client.stream(
                    text,
                    voice=args.voice,
                    speaker=args.speaker,
                    context=turns,
                    temperature=args.temperature,
                    top_k=args.top_k,
                    seed=args.seed,
                    max_audio_ms=None if args.max_seconds is None else milliseconds(args.max_seconds),
                    sample_rate_hz=args.rate,
                    container=container,
                    encoding=encoding,
                )
            except ValueError as error:
                raise CommandError(str(error)) from error
            try:
                spoken = await listen(stream, err, TeeSink(*sinks), encoded=form != "wav")
            except exceptions.SpeechError:
                if args.trace:
                    await show_waterfall(out, save_last_request(stream, trace_id, store), None, store)
                raise
            finally:
                if player is not None:
                    await player.stop()
                trace_id = save_last_request(stream, trace_id, store)
        name = "standard output" if to_stdout else args.output or "played"
        out.print(f"{name}: {spoken.describe()}\n{await _answered_by(client)}")
        if args.trace:
            await show_waterfall(out, trace_id, stream.summary, store)
    return 0 if spoken.is_complete else SAY_INCOMPLETE


def _format(output: Path | None, form: str | None) -> str:
    """A key of FORMATS. Raises: UsageError."""
    suffix = output.suffix.lower() if output is not None else ""
    if form is not None and suffix in SUFFIXES:
        raise click.UsageError(f"--format is for standard output and pipes; {output} has its format from its name")
    return form or (suffix[1:] if suffix in SUFFIXES else "wav")


def _text(args: Options) -> str:
    if args.text_file is not None:
        return input_text(args.text_file)
    text: str = input_text("-") if args.text == "-" else args.text
    return text


async def _answered_by(client: SpeechClient) -> str:
    """Which deployment spoke."""
    answer = speech_pb2.ListVoicesResponse()
    with suppress(exceptions.SpeechError):  # the speech is there, whatever this answers
        answer = await client.voices(timeout_s=_VOICES_S)
    parts = [f"bundle {answer.bundle.bundle_id}"] if answer.bundle.bundle_id else []
    parts += [f"version {answer.version}"] if answer.version else []
    return plain_line(f"spoken by {client.address}" + (f" ({', '.join(parts)})" if parts else ""))
