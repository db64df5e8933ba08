"""Options and value types that several subcommands share."""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from gateway.cli.errors import CommandError

F = TypeVar("F", bound=Callable[..., Any])
TIMEOUT_S = 120.0
HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class Seconds(click.ParamType):
    """Seconds (or another amount), within limits."""

    name = "seconds"

    def __init__(self, *, zero: bool = False):
        self._zero = zero

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not (0 <= number if self._zero else 0 < number) or number > 86_400:
            least = "0" if self._zero else "more than 0 and"
            self.fail(f"must be {least}{' to' if self._zero else ' at most'} 86400, not {value!r}", param, ctx)
        return number


def milliseconds(seconds: float) -> int:
    """Whole ones, rounded up: 32.24 s are 32,240, though 32.24 * 1000 is a little more."""
    return math.ceil(round(seconds * 1000, 6))


class OutputFile(click.ParamType):
    """A file to write, by its suffix; `-` is standard output. What is there and is no file (a pipe) may have any name."""

    name = "file"

    def __init__(self, *suffixes: str):
        self._suffixes: tuple[str, ...] = suffixes

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = Path(value)
        if str(value) != "-" and path.suffix.lower() not in self._suffixes and (path.is_file() or not path.exists()):
            *most, last = self._suffixes
            kinds = f"{', '.join(most)} or {last}" if most else last
            self.fail(f"{value}: what is written is {kinds}, so its name must end in that", param, ctx)
        return path


def input_bytes(name: str, limit: int = 1 << 30) -> bytes:
    """What the file or pipe `name` holds; `-` is standard input. Raises: OSError, CommandError."""
    # Standard input is not read through sys.stdin, whose lock a blocked thread would hold at exit.
    fd = sys.stdin.fileno() if name == "-" else os.open(name, os.O_RDONLY)
    try:
        data = bytearray()
        while part := os.read(fd, 1 << 20):
            data += part
            if len(data) > limit:
                raise CommandError(f"{name}: longer than {limit / 1e6:.0f} MB")
        return bytes(data)
    except OSError as error:  # a folder opens, and cannot be read
        raise OSError(error.errno, error.strerror, name) from None
    finally:
        if name != "-":
            os.close(fd)


def input_text(name: str) -> str:
    """The same as text in UTF-8, without the line feed at its end. Raises: OSError, CommandError."""
    try:
        return input_bytes(name, 1 << 24).decode("utf-8-sig").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        where = "standard input" if name == "-" else name
        raise CommandError(
            f"{where}: not UTF-8 text (byte {error.object[error.start]:#04x} at {error.start})"
        ) from None


def remote(command: F) -> F:
    """The options of every subcommand that calls a gateway; see `connection.client`."""
    for option in reversed(_remote_options()):
        command = option(command)
    return command


def _remote_options() -> list[Callable[[F], F]]:
    files = (
        ("ca", "Trust servers with a certificate of this authority"),
        ("cert", "Our own certificate, where the gateway wants one"),
        ("key", "Its key"),
    )
    return [
        click.option(
            "--address",
            metavar="HOST:PORT",
            help="The gateway (default: CSM_ADDRESS, the running `csm up`, localhost).",
        ),
        *(
            click.option(
                f"--tls-{name}",
                envvar=f"CSM_TLS_{name.upper()}_FILE",
                default="",
                metavar="FILE",
                help=f"{text} (default: CSM_TLS_{name.upper()}_FILE).",
            )
            for name, text in files
        ),
        click.option(
            "--token-file",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="A bearer token (default: the token CSM_TOKEN).",
        ),
        click.option(
            "--timeout",
            type=Seconds(),
            metavar="SECONDS",
            help=f"Give up after this (default {TIMEOUT_S:g}; csm say adds a quarter of a second for each character, csm verify waits a day).",
        ),
    ]


def model(command: F) -> F:
    """The option that names a bundle."""
    return click.option(
        "--model",
        default=lambda: os.environ.get("CSM_MODEL") or "embedded",
        metavar="BUNDLE",
        help="embedded, csm-1b, or a folder with a bundle.toml (default: CSM_MODEL, else embedded).",
    )(command)


class Context(click.ParamType):
    """[SPEAKER@]FILE:TRANSCRIPT. A file name may have colons too: the shortest that exists is taken."""

    name = "context"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int | None, str, str]:
        speaker, rest = None, value
        if numbered := re.match(r"(\d+)@", value):
            speaker, rest = int(numbered[1]), value[numbered.end() :]
        colons = [index for index, letter in enumerate(rest) if letter == ":"]
        if not colons:
            self.fail(f"{value!r} is not [SPEAKER@]FILE:TRANSCRIPT", param, ctx)
        for colon in colons:
            name = rest[:colon]
            if name == "-" or (name and Path(name).exists() and not Path(name).is_dir()):
                return speaker, name, rest[colon + 1 :]
        self.fail(f"no such file: {rest[: colons[0]]}", param, ctx)
