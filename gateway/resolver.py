"""A gRPC target to the addresses behind it, one for each replica of a service.

Knows no gRPC: it only keeps to gRPC's naming of targets, `dns:///name:port`, `ipv4:1.2.3.4:port,…` and the like.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass

_DNS_PORT = 53


class ResolveError(Exception):
    """A name has no address, or its name server gave no answer. The message is one line."""


@dataclass(frozen=True)
class Target:
    """fixed: addresses that need no look-up. Otherwise host and port, and the name server to ask, or the system's.

    Addresses are gRPC targets of one address each, such as `ipv4:10.0.0.1:50053`.
    """

    fixed: tuple[str, ...] = ()
    host: str = ""
    port: str = ""
    name_server: str | None = None

    async def addresses(self) -> Sequence[str]:
        """All addresses, at least one. Raises: ResolveError."""
        if self.fixed:
            return self.fixed
        found = await (self._by_system() if self.name_server is None else self._by_name_server(self.name_server))
        if not found:
            raise ResolveError(f"{self.host} has no address")
        return tuple(dict.fromkeys(_address(ip, self.port) for ip in found))

    async def _by_system(self) -> list[str]:
        try:
            answers = await asyncio.get_running_loop().getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise ResolveError(f"{self.host} cannot be resolved: {error}") from None
        return [str(answer[4][0]) for answer in answers]

    async def _by_name_server(self, name_server: str) -> list[str]:
        # Here: a target that names its name server is rare.
        import dns.asyncresolver
        import dns.exception
        import dns.resolver

        host, port = _split(name_server, str(_DNS_PORT))
        resolver = dns.asyncresolver.Resolver(configure=False)
        resolver.nameservers, resolver.port, resolver.lifetime = [host], int(port), 5.0
        found: list[str] = []
        for kind in ("A", "AAAA"):
            try:
                found += [record.address for record in await resolver.resolve(self.host, kind)]
            except dns.resolver.NoAnswer:
                continue
            except dns.exception.DNSException as error:
                raise ResolveError(f"{self.host} cannot be resolved by {name_server}: {error}") from None
        return found


def parse_target(target: str) -> Target:
    """`host:port`, or a target of gRPC's schemes dns, ipv4, ipv6 and unix."""
    scheme, colon, rest = target.partition(":")
    if colon and scheme in ("unix", "unix-abstract"):
        return Target(fixed=(target,))
    if colon and scheme in ("ipv4", "ipv6"):
        return Target(fixed=tuple(f"{scheme}:{one.strip()}" for one in rest.lstrip("/").split(",")))
    name_server = None
    if colon and scheme == "dns":
        if rest.startswith("//"):
            authority, _, rest = rest[2:].partition("/")
            name_server = authority or None
        target = rest
    host, port = _split(target, "443")  # gRPC's default port
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return Target(host=host, port=port, name_server=name_server)
    return Target(fixed=(_address(host, port),))


def _split(address: str, default_port: str) -> tuple[str, str]:
    """`host:port`, `[ipv6]:port` or a host alone to its two parts."""
    if address.startswith("["):
        host, _, port = address[1:].partition("]")
        return host, port.removeprefix(":") or default_port
    if address.count(":") > 1:
        return address, default_port
    host, _, port = address.partition(":")
    return host, port or default_port


def _address(ip: str, port: str) -> str:
    return f"ipv6:[{ip}]:{port}" if ":" in ip else f"ipv4:{ip}:{port}"
