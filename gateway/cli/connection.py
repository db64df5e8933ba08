"""How a `csm` subcommand reaches a gateway, by its options and the environment."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csm_client import SpeechClient

from gateway.cli import state
from gateway.cli.diagnosis import split_address
from gateway.cli.errors import CommandError
from gateway.cli.options import TIMEOUT_S
from gateway.cli.ports import DEFAULT_PORT
from gateway.cli.trace.spans import TraceStore

if TYPE_CHECKING:
    import grpc

    from gateway.cli.bench.peers import Peer


def address(args: Any) -> str:
    """The gateway to talk to. Raises: CommandError when it is no address."""
    running = state.find(state.state_dir())
    found: str = (
        args.address or os.environ.get("CSM_ADDRESS") or (running.address if running else f"127.0.0.1:{DEFAULT_PORT}")
    )
    try:
        split_address(found)
    except ValueError as error:
        raise CommandError(str(error)) from None
    return found


def client(args: Any) -> SpeechClient:
    """A client of that gateway, with the TLS files and the token of `args`; the caller closes it.

    Raises: CommandError, OSError when a file is of no use, SettingError.
    """
    found = address(args)
    args.timeout = args.timeout or TIMEOUT_S
    # `csm up` speaks plaintext on loopback, whatever the environment says of other gateways.
    here = found in {running.address for running in state.running(state.state_dir())}
    client = SpeechClient(
        found,
        credentials=None if here else _credentials(args.tls_ca, args.tls_cert, args.tls_key),
        token=_token(args),
        insecure=_allows_plaintext(),
        timeout_s=args.timeout,
    )
    args.speaks_tls = client.is_encrypted
    return client


def peer(args: Any, target: str) -> Peer:
    """A server that `csm bench` compares with, at --address: host:port of a Riva, URL of an OpenAI-like one.

    Raises: CommandError, OSError when a file is of no use.
    """
    from gateway.cli.bench.peers import OpenAIPeer, RivaPeer

    if target == "riva":
        return RivaPeer(address(args), _credentials(args.tls_ca, args.tls_cert, args.tls_key), _token(args))
    url = args.address or ""
    if not re.fullmatch(r"https?://[^\s/]+/?", url):
        raise CommandError(f"--address: must be a URL such as http://localhost:8000, not {url!r}")
    try:
        return OpenAIPeer(url, _token(args))
    except ImportError:
        raise CommandError("--target openai needs httpx: pip install 'csm-serve[bench]'") from None


def _credentials(ca: str, cert: str, key: str) -> grpc.ChannelCredentials | None:
    if not (ca or cert or key):
        return None
    from services.runtime import tls
    from services.runtime.certificates import CertificateError

    try:
        return tls.channel_credentials(tls.ClientFiles(ca=ca, cert=cert, key=key))
    except CertificateError as error:
        raise OSError(str(error)) from None


def _allows_plaintext() -> bool:
    if not (words := os.environ.get("CSM_INSECURE", "")):
        return False
    from services.runtime import tls

    return tls.PLAINTEXT in tls.left_open(words)


def _token(args: Any) -> str | None:
    """Read once for a command and its worker processes: the file may be a pipe, which gives it only once."""
    if not hasattr(args, "token"):
        args.token = _read_token(args.token_file)
    token: str | None = args.token
    return token


def _read_token(file: Path | None) -> str | None:
    if file is None:
        source, text = "CSM_TOKEN", os.environ.get("CSM_TOKEN", "")
    else:
        source, text = str(file), file.read_bytes().decode("ascii", errors="replace")
    token = text.strip()
    if not token and file is None:
        return None
    # The value itself is a secret, and stays out of the message.
    if not re.fullmatch(r"[!-~]+", token):
        raise OSError(f"{source}: not a token: one word of visible ASCII")
    return token


def traces(args: Any) -> TraceStore | None:
    """The traces of that gateway's requests, if they are on this machine."""
    here = {running.address: running.traces for running in state.running(state.state_dir())}
    folder = here.get(address(args))
    return TraceStore(Path(folder)) if folder else None
