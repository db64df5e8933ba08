"""The ports of a chain on this machine."""

from __future__ import annotations

import socket

from gateway.stage_names import STAGES
from services.runtime.settings import StartError

DEFAULT_PORT = 50050
HOST = "127.0.0.1"


_NAMES = ("gateway", *STAGES, "http")


def consecutive_ports(first: int) -> dict[str, int]:
    """The gateway's port, and those of the stages and of the HTTP process behind it. Raises: StartError when one is taken."""
    ports = {name: first + index for index, name in enumerate(_NAMES)}
    for name, port in ports.items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except (OSError, OverflowError) as error:
                raise StartError(
                    f"port {port}, for the {name}, cannot be had ({error}); "
                    "is another `csm up` running? --port takes other ports, --ephemeral any free ones"
                ) from error
    return ports


def free_ports(*, http: bool = False) -> dict[str, int]:
    """Ports on which nothing listens, for the gateway, the stages and, if asked for, the HTTP process."""
    probes = {name: socket.socket() for name in _NAMES if http or name != "http"}
    try:
        for probe in probes.values():
            probe.bind((HOST, 0))
        return {name: probe.getsockname()[1] for name, probe in probes.items()}
    finally:
        for probe in probes.values():
            probe.close()
