"""Run one subcommand: signals, and every failure as one line and an exit code."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

from csm_client import exceptions

from gateway.cli import connection, diagnosis
from gateway.cli.errors import CommandError
from gateway.cli.supervisor import ChildDied
from gateway.cli.terminal import plain
from models.files import ModelError
from services.runtime.settings import StartError

# The options of a subcommand, as its parameters are called.
Options = SimpleNamespace

SAY_INCOMPLETE = 9
_CODES: dict[type[exceptions.SpeechError], int] = {
    exceptions.InvalidRequest: 3,
    exceptions.Overloaded: 4,
    exceptions.Unavailable: 5,
    exceptions.DeadlineExceeded: 6,
    exceptions.Unauthenticated: 8,
}


def execute(run: Callable[[Options], Coroutine[Any, Any, int]], options: dict[str, Any]) -> int:
    """`run` the subcommand with its `options`; returns its exit code."""
    args = Options(**options)
    try:
        return asyncio.run(_until_signal(run, args))
    except exceptions.SpeechError as error:
        return _fail(_readable(error, args), _CODES.get(type(error), 7))
    except (StartError, ModelError, ChildDied) as error:
        return _fail(str(error), 1)
    except CommandError as error:
        return _fail(str(error), 2)
    except BrokenPipeError:
        raise
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error), 2)
    except (KeyboardInterrupt, asyncio.CancelledError):
        return _fail("interrupted", 130)


async def _until_signal(run: Callable[[Options], Coroutine[Any, Any, int]], args: Options) -> int:
    """SIGTERM and SIGHUP end the command as Ctrl-C does: its task is cancelled and cleans up."""
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        return await run(args)
    except exceptions.Unavailable as error:
        if error.reason is None and hasattr(args, "address"):
            # Our servers always give a reason; without one it is gRPC that speaks.
            error.args = (await diagnosis.explain(connection.address(args), args.speaks_tls, str(error)),)
        raise


def _fail(text: str, code: int) -> int:
    print(f"csm: {plain(text)}", file=sys.stderr)
    return code


def _readable(error: exceptions.SpeechError, args: Options) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, exceptions.Overloaded) and error.retry_after_s is not None:
        return f"overloaded: {text}; try again in {error.retry_after_s:g} s"
    if isinstance(error, exceptions.DeadlineExceeded) and hasattr(args, "timeout"):
        return f"not done within {args.timeout:g} s (--timeout)"
    return text
