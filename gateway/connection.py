"""How a `csm` command reaches a gateway: the options that say so, and the client made from them."""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path

from gateway import state
from gateway.client import SpeechClient
from gateway.traces import TraceStore
from gateway.up import DEFAULT_PORT


def arguments() -> argparse.ArgumentParser:
    """A parent parser with the options of every command that calls a gateway."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--address", help="gateway, host:port (default: CSM_ADDRESS, the running `csm up`, localhost)")
    parser.add_argument("--timeout", type=seconds, default=120.0, metavar="SECONDS", help="default 120")
    return parser


def address(args: argparse.Namespace) -> str:
    """The gateway to talk to."""
    running = state.find(state.state_dir())
    return args.address or os.environ.get("CSM_ADDRESS") or (
        running.address if running else f"127.0.0.1:{DEFAULT_PORT}"
    )


def client(args: argparse.Namespace) -> SpeechClient:
    """A client of that gateway; the caller closes it."""
    return SpeechClient(address(args), timeout_s=args.timeout)


def traces(args: argparse.Namespace) -> TraceStore | None:
    """The traces of that gateway's requests, if they are on this machine."""
    running = state.find(state.state_dir())
    if running is None or running.traces is None or running.address != address(args):
        return None
    return TraceStore(Path(running.traces))


def seconds(value: str) -> float:
    """An option's value in seconds. Raises: argparse.ArgumentTypeError outside (0, 86400]."""
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 < number <= 86_400:
        raise argparse.ArgumentTypeError(f"must be seconds, more than 0 and at most 86400, not {value!r}")
    return number
