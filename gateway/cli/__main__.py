"""The `csm` command: run the chain on this machine, speak through it, check what it said."""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import re
import signal
import sys
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

from csm_client import ContextTurn, exceptions
from rich import box
from rich.console import Console
from rich.table import Table

from gateway.cli import connection, state
from gateway.cli.bench import command as bench
from gateway.cli.demo import demo, verdict
from gateway.cli.say import listen, new_trace, remember, replacing, show_waterfall
from gateway.cli.supervisor import ChildDied
from gateway.cli.terminal import PlainConsole, plain
from gateway.cli.trace import command as trace_command
from gateway.cli.trace.lookup import TraceError
from gateway.cli.up import DEFAULT_PORT, NOISE, Plan, consecutive_ports, free_ports, up
from models.files import ModelError
from services.runtime.settings import StartError

EXIT_CODES = """exit codes:
  0    done; for verify: the watermark was found
  1    verify: not found; bench: an utterance failed, or none was measured; up, demo: a service could not start, or ended
  2    the command line is wrong, or a file cannot be read or written
  3    the server refuses the request: it breaks a limit
  4    the server is overloaded
  5    nothing answers, or a stage went away
  6    it took longer than --timeout
  7    the server broke
  8    the server wants a token, or another one (--token-file, CSM_TOKEN)
  130  interrupted
"""
_CODES: dict[type[exceptions.SpeechError], int] = {
    exceptions.InvalidRequest: 3,
    exceptions.Overloaded: 4,
    exceptions.Unavailable: 5,
    exceptions.DeadlineExceeded: 6,
    exceptions.Unauthenticated: 8,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. Every failure is one line on standard error."""
    args = _parser().parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        return asyncio.run(_until_signal(args.run(args)))
    except exceptions.SpeechError as error:
        return _fail(_readable(error, args), _CODES.get(type(error), 7))
    except (StartError, ModelError, ChildDied) as error:
        return _fail(str(error), 1)
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error), 2)
    except (_WrongValue, TraceError) as error:
        return _fail(str(error), 2)
    except (KeyboardInterrupt, asyncio.CancelledError):
        return _fail("interrupted", 130)


class _WrongValue(Exception):
    """A value of the command line that cannot even be sent."""


async def _until_signal(command: Coroutine[Any, Any, int]) -> int:
    """SIGTERM ends the command as Ctrl-C does: its task is cancelled and cleans up."""
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asyncio.current_task().cancel)
    return await command


def _fail(text: str, code: int) -> int:
    print(f"csm: {plain(text)}", file=sys.stderr)
    return code


def _readable(error: exceptions.SpeechError, args: argparse.Namespace) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, exceptions.Overloaded) and error.retry_after_s is not None:
        return f"overloaded: {text}; try again in {error.retry_after_s:g} s"
    if isinstance(error, exceptions.DeadlineExceeded) and hasattr(args, "timeout"):
        return f"not done within {args.timeout:g} s (--timeout)"
    if isinstance(error, exceptions.Unavailable) and error.reason is None and hasattr(args, "address"):
        # Our servers always give a reason; without one it is gRPC that speaks.
        if any(word in text.lower() for word in ("handshake", "verification", "certificate")):
            return f"{connection.address(args)} and we cannot agree on TLS ({text}); see --tls-ca, --tls-cert, CSM_INSECURE"
        if "connect" in text or "DNS" in text:
            return (
                f"nothing answers at {connection.address(args)} ({text}); `csm up` starts the services on this machine"
            )
        return f"{connection.address(args)} broke off ({text})"
    return text


async def _say(args: argparse.Namespace) -> int:
    out, err = _consoles()
    store = connection.traces(args)
    turns = [ContextTurn(args.speaker if who is None else who, text, path) for who, path, text in args.context]
    async with connection.client(args) as client:
        with replacing(args.output) as file, new_trace() as trace_id:
            try:
                stream = client.stream(
                    args.text,
                    speaker=args.speaker,
                    context=turns,
                    temperature=args.temperature,
                    top_k=args.top_k,
                    seed=args.seed,
                    max_audio_ms=None if args.max_seconds is None else math.ceil(args.max_seconds * 1000),
                    sample_rate_hz=args.rate,
                    encoding="pcm_s16le",
                )
            except ValueError as error:
                raise _WrongValue(str(error)) from error
            try:
                spoken = await listen(stream, err)
            except exceptions.SpeechError:
                if args.trace:
                    await show_waterfall(out, remember(stream, trace_id, store), None, store)
                raise
            finally:
                trace_id = remember(stream, trace_id, store)
            file.write(spoken.wav())
    out.print(f"{args.output}: {spoken.describe()}")
    if args.trace:
        await show_waterfall(out, trace_id, stream.summary, store)
    return 0


async def _verify(args: argparse.Namespace) -> int:
    out, err = _consoles()
    async with connection.client(args) as client:
        with err.status("looking for the watermark"):
            answer = await client.verify(args.file)
    out.print(verdict(answer))
    return 0 if answer.found else 1


async def _voices(args: argparse.Namespace) -> int:
    out, _ = _consoles()
    async with connection.client(args) as client:
        answer = await client.voices()
    bundle = answer.bundle
    out.print(
        f"Bundle `{bundle.bundle_id}`:\n{answer.description}\n"
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
        example = f'csm say "Hello." --speaker {voice.speaker} -o {voice.name or voice.speaker}.wav'
        table.add_row(str(voice.speaker), plain(voice.name), plain(voice.description), plain(example))
    out.print(table, soft_wrap=False)
    return 0


async def _up(args: argparse.Namespace) -> int:
    ports = free_ports() if args.ephemeral else consecutive_ports(args.port)
    with state.claim(state.state_dir()) as folder:
        return await up(Plan(args.model, ports, folder), _consoles()[0])


async def _trace(args: argparse.Namespace) -> int:
    return await trace_command.trace(args, *_consoles())


async def _demo(args: argparse.Namespace) -> int:
    return await demo(args.model, args.output, *_consoles())


def _consoles() -> tuple[Console, Console]:
    """For standard output and standard error; what is printed is text, never markup or a command."""
    return PlainConsole(), PlainConsole(stderr=True)


def _context(value: str) -> tuple[int | None, Path, str]:
    """[SPEAKER@]FILE:TRANSCRIPT. A file name may have colons too: the shortest that exists is taken."""
    speaker, rest = None, value
    if numbered := re.match(r"(\d+)@", value):
        speaker, rest = int(numbered[1]), value[numbered.end() :]
    colons = [index for index, letter in enumerate(rest) if letter == ":"]
    if not colons:
        raise argparse.ArgumentTypeError(f"{value!r} is not [SPEAKER@]FILE:TRANSCRIPT")
    for colon in colons:
        if Path(rest[:colon]).is_file():
            return speaker, Path(rest[:colon]), rest[colon + 1 :]
    raise argparse.ArgumentTypeError(f"no such file: {rest[: colons[0]]}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="csm",
        description="Watermarked speech from text, with CSM.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    remote = connection.arguments()
    local = argparse.ArgumentParser(add_help=False)
    local.add_argument(
        "--model",
        default=os.environ.get("CSM_MODEL") or "embedded",
        metavar="BUNDLE",
        help="embedded, noise, csm-1b, or a folder with a bundle.toml (default: CSM_MODEL, else embedded)",
    )

    command = commands.add_parser("say", parents=[remote], help="speak a text into a WAV file")
    command.add_argument("text")
    command.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.wav")
    command.add_argument("--speaker", type=int, default=0, help="number of the voice (default 0)")
    command.add_argument(
        "--context",
        type=_context,
        action="append",
        default=[],
        metavar="[SPEAKER@]FILE:TRANSCRIPT",
        help="an earlier turn: its WAV and its words, oldest first; by --speaker unless a number stands in front",
    )
    command.add_argument("--seed", type=int, help="the same seed and request give the same speech")
    command.add_argument("--temperature", type=float, help="default 0.9")
    command.add_argument("--top-k", type=int, help="default 50")
    command.add_argument("--max-seconds", type=connection.seconds, metavar="SECONDS", help="longest audio")
    command.add_argument("--rate", type=int, metavar="HZ", help="sample rate, 8000 to 48000 (default: the model's)")
    command.add_argument("--trace", action="store_true", help="show where the time went")
    command.set_defaults(run=_say)

    command = commands.add_parser("verify", parents=[remote], help="look for the watermark in a WAV file")
    command.add_argument("file", type=Path)
    command.set_defaults(run=_verify)

    command = commands.add_parser("voices", parents=[remote], help="list the voices")
    command.set_defaults(run=_voices)

    bench.add_parser(commands, remote)

    trace_command.add_parser(commands, _trace)

    command = commands.add_parser("up", parents=[local], help="run the five services here until Ctrl-C")
    ports = command.add_mutually_exclusive_group()
    ports.add_argument(
        "--port", type=int, default=DEFAULT_PORT, help=f"of the gateway; the stages take the next four ({DEFAULT_PORT})"
    )
    ports.add_argument("--ephemeral", action="store_true", help="take any free ports")
    command.set_defaults(run=_up)

    command = commands.add_parser("demo", parents=[local], help="start all, say a sentence, verify it, stop all")
    command.add_argument("-o", "--output", type=Path, default=Path("out/demo.wav"), metavar="FILE.wav")
    command.set_defaults(run=_demo)
    return parser


if __name__ == "__main__":
    sys.exit(main())
