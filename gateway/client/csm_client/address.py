"""Whether an address is on this machine: there plaintext is safe."""

from __future__ import annotations

import ipaddress


def is_loopback(target: str) -> bool:
    """Whether every address of a gRPC target (`host:port`, `dns:///…`, `unix:…`) is on this machine alone."""
    scheme, colon, rest = target.partition(":")
    if colon and scheme in ("unix", "unix-abstract"):
        return True
    if colon and scheme in ("ipv4", "ipv6", "dns"):
        target = rest.rpartition("/")[2] if rest.startswith("//") else rest
    return all(_is_loopback_host(address) for address in target.split(","))


def _is_loopback_host(address: str) -> bool:
    host = address.strip()
    if host.startswith("["):
        host = host[1:].partition("]")[0]
    elif host.count(":") == 1:
        host = host.partition(":")[0]
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
