"""How a `csm` command reaches a gateway: the options that say so, and the client made from them."""

from __future__ import annotations

import argparse
import math
import os
import re
from pathlib import Path

from csm_client import SpeechClient

from gateway.cli import state
from gateway.cli.trace.traces import TraceStore
from gateway.cli.up import DEFAULT_PORT
from services.runtime import tls
from services.runtime.certificates import CertificateError


def arguments() -> argparse.ArgumentParser:
    """A parent parser with the options of every command that calls a gateway."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--address", help="gateway, host:port (default: CSM_ADDRESS, the running `csm up`, localhost)")
    access = parser.add_argument_group("access", "Without these, plaintext on this machine and public TLS beyond it.")
    for name, what in (
        ("ca", "trust servers with a certificate of this authority"),
        ("cert", "our own certificate, where the gateway wants one"),
        ("key", "its key"),
    ):
        variable = f"CSM_TLS_{name.upper()}_FILE"
        access.add_argument(
            f"--tls-{name}", default=os.environ.get(variable, ""), metavar="FILE", help=f"{what} (default: {variable})"
        )
    access.add_argument("--token-file", type=Path, metavar="FILE", help="a bearer token (default: the token CSM_TOKEN)")
    parser.add_argument("--timeout", type=seconds, default=120.0, metavar="SECONDS", help="default 120")
    return parser


def address(args: argparse.Namespace) -> str:
    """The gateway to talk to."""
    running = state.find(state.state_dir())
    return (
        args.address or os.environ.get("CSM_ADDRESS") or (running.address if running else f"127.0.0.1:{DEFAULT_PORT}")
    )


def client(args: argparse.Namespace) -> SpeechClient:
    """A client of that gateway, with the TLS files and the token of the command; the caller closes it.

    Raises: OSError when a file is of no use, SettingError.
    """
    files = tls.ClientFiles(ca=args.tls_ca, cert=args.tls_cert, key=args.tls_key)
    # `csm up` speaks plaintext on loopback, whatever the environment says of other gateways.
    here = address(args) in {running.address for running in state.running(state.state_dir())}
    try:
        credentials = tls.channel_credentials(files) if files and not here else None
    except CertificateError as error:
        raise OSError(str(error)) from None
    return SpeechClient(
        address(args),
        credentials=credentials,
        token=_token(args),
        insecure=tls.PLAINTEXT in tls.left_open(os.environ.get(tls.INSECURE, "")),
        timeout_s=args.timeout,
    )


def _token(args: argparse.Namespace) -> str | None:
    """Read once for a command and its worker processes: the file may be a pipe, which gives it only once."""
    if not hasattr(args, "token"):
        args.token = _read_token(args.token_file)
    return args.token


def _read_token(file: Path | None) -> str | None:
    if file is None:
        source, text = "CSM_TOKEN", os.environ.get("CSM_TOKEN", "")
    else:
        source, text = file, file.read_bytes().decode("ascii", errors="replace")
    token = text.strip()
    if not token and file is None:
        return None
    # The value itself is a secret, and stays out of the message.
    if not re.fullmatch(r"[!-~]+", token):
        raise OSError(f"{source}: not a token: one word of visible ASCII")
    return token


def traces(args: argparse.Namespace) -> TraceStore | None:
    """The traces of that gateway's requests, if they are on this machine."""
    here = {running.address: running.traces for running in state.running(state.state_dir())}
    folder = here.get(address(args))
    return TraceStore(Path(folder)) if folder else None


def seconds(value: str) -> float:
    """An option's value in seconds. Raises: argparse.ArgumentTypeError outside (0, 86400]."""
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 < number <= 86_400:
        raise argparse.ArgumentTypeError(f"must be seconds, more than 0 and at most 86400, not {value!r}")
    return number
