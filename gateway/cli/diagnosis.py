"""Why a gateway cannot be reached: its name, its port, the network, or TLS.

gRPC reports most of these as one status with words that differ between versions, so we look for ourselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl

_TIMEOUT_S = 3.0


def split_address(address: str) -> tuple[str, int] | None:
    """(host, port) of `host:port`; None for gRPC's other targets (`unix:…`, `ipv4:…`).

    Raises: ValueError that says what an address must be.
    """
    scheme, separator, rest = address.partition(":")
    if scheme in ("unix", "unix-abstract", "ipv4", "ipv6"):
        return None
    if scheme == "dns":
        address = rest.rpartition("/")[2]
    elif separator and rest.startswith("//"):
        raise ValueError(f"{address!r} is a URL; a gateway's address is host:port")
    host, separator, port = address.rpartition(":")
    if not separator or (host.count(":") and not host.startswith("[")):
        raise ValueError(f"{address!r} has no port; a gateway's address is host:port")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"{address!r} is not host:port with a port from 1 to 65535")
    return host.strip("[]"), int(port)


async def explain(address: str, speaks_tls: bool, error: str) -> str:
    """One line on why calls to `address` fail. error: what gRPC said."""
    try:
        place = split_address(address)
    except ValueError as wrong:
        return str(wrong)
    error = " ".join(error.split())
    if place is None:
        return f"{address} cannot be reached ({error})"
    host, port = place
    loop = asyncio.get_running_loop()
    try:
        await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as wrong:
        return f"{address}: the name {host} does not resolve ({(wrong.strerror or str(wrong)).lower()})"
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            await _close(await asyncio.open_connection(host, port))
    except ConnectionRefusedError:
        return f"nothing listens at {address} (connection refused); `csm up` starts the services on this machine"
    except TimeoutError:
        return f"{address} does not answer within {_TIMEOUT_S:g} s: wrong address, or a firewall between"
    except OSError as wrong:
        return f"{address} cannot be reached ({(wrong.strerror or str(wrong)).lower()})"
    answers_tls = await _answers_tls(host, port)
    if speaks_tls and not answers_tls:
        return f"{address} speaks plaintext and we spoke TLS; CSM_INSECURE=plaintext, if the network between is trusted"
    if answers_tls and not speaks_tls:
        return f"{address} speaks TLS and we spoke plaintext; --tls-ca names the authority to trust"
    if speaks_tls and any(word in error.lower() for word in ("handshake", "verif", "certificate", "ssl", "tls")):
        return f"{address} and we cannot agree on TLS ({error}); see --tls-ca, --tls-cert, --tls-key"
    if "SETTINGS" in error or "http" in error.lower():
        return f"{address} speaks something else than gRPC ({error})"
    return f"{address} ended the call ({error})"


async def _answers_tls(host: str, port: int) -> bool:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            await _close(await asyncio.open_connection(host, port, ssl=context, server_hostname=host))
    except ssl.SSLError as wrong:
        # A server that wants our certificate, or speaks other versions, answers with an alert.
        return "ALERT" in (wrong.reason or "")
    except (OSError, TimeoutError):
        return False
    return True


async def _close(connection: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
    connection[1].close()
    with contextlib.suppress(OSError):
        await connection[1].wait_closed()
