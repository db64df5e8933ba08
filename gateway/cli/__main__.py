"""The `csm` command: run the chain on this machine, speak through it, check what it said.

Starts fast: a subcommand's modules are imported when it is called.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

import click
from csm.version import __version__

# name: (module, its help). The module's `command` is the subcommand.
_COMMANDS = {
    "say": ("gateway.cli.commands.say", "Speak a text into a file, or play it."),
    "chat": ("gateway.cli.commands.chat", "Talk: text in as it comes, speech out, turn by turn."),
    "verify": ("gateway.cli.commands.verify", "Look for the watermark in an audio file."),
    "voices": ("gateway.cli.commands.voices", "List the voices."),
    "bench": ("gateway.cli.bench.command", "Put load on a gateway and report what its callers heard."),
    "trace": ("gateway.cli.trace.command", "Draw where a request's time went, as one HTML file."),
    "up": ("gateway.cli.commands.up", "Run the five services and their page here until Ctrl-C."),
    "demo": ("gateway.cli.commands.demo", "Start all, say a sentence, verify it, stop all."),
    "completion": ("gateway.cli.commands.completion", "Print a script that completes csm's commands in a shell."),
}

EXIT_CODES = """\b
Exit codes:
  0    done; for verify: the watermark was found
  1    verify: not found; bench: an utterance failed, or none was measured;
       up, demo: a service could not start, or ended
  2    the command line is wrong, or a file cannot be read or written
  3    the server refuses the request: it breaks a limit
  4    the server is overloaded
  5    nothing answers, or a stage went away
  6    it took longer than --timeout
  7    the server broke
  8    the server wants a token, or another one (--token-file, CSM_TOKEN)
  9    say: the speech was cut at a cap, or there was none; what there is was written
  130  interrupted
"""


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        # Before anything imports OpenTelemetry, which raises for some variables.
        for warning in importlib.import_module("services.runtime.otel_environment").WARNINGS:
            print(f"csm: {warning}", file=sys.stderr)
        command: click.Command = importlib.import_module(_COMMANDS[name][0]).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_text) for name, (_, help_text) in _COMMANDS.items()])


@click.group(cls=_LazyGroup, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="csm", message="%(prog)s %(version)s")
def cli() -> None:
    """Watermarked speech from text, with CSM."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. Every failure is one line on standard error."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        code = cli.main(None if argv is None else list(argv), prog_name="csm", standalone_mode=False)
        sys.stdout.flush()
        return int(code or 0)
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        return 2
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "csm"
        print(f"{command}: {_one_line(error.format_message())}; {command} -h says more", file=sys.stderr)
        return 2
    except click.Abort:
        print("csm: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of a pipe left. At exit Python would try to write what is left, and fail once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2


def _one_line(text: str) -> str:
    return " ".join(text.split()).removesuffix(".")


if __name__ == "__main__":
    sys.exit(main())
