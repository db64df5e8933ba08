"""TLS by file paths, and when a connection may do without.

Plaintext stays on this machine unless it is asked for by name (CSM_INSECURE=plaintext).
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

import grpc

from services.runtime import certificates
from services.runtime.certificates import CertificateError
from services.runtime.settings import SettingError

INSECURE = "CSM_INSECURE"
PLAINTEXT, NO_TOKENS = "plaintext", "no-tokens"


@dataclass(frozen=True)
class ClientFiles:
    """Paths of PEM files. ca: whom to trust; empty: the public authorities. cert, key: what to show; empty: nothing."""

    ca: str | Path = ""
    cert: str | Path = ""
    key: str | Path = ""

    def __bool__(self) -> bool:
        return bool(self.ca or self.cert or self.key)

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(Path(path) for path in (self.ca, self.cert, self.key) if path)


def channel_credentials(files: ClientFiles) -> grpc.ChannelCredentials:
    """What the files hold now. Raises: CertificateError."""
    if bool(files.cert) != bool(files.key):
        raise CertificateError(f"{files.cert or files.key}: a certificate and its key are given together or not at all")
    pair = certificates.read_pair(files.cert, files.key) if files.cert else None
    return grpc.ssl_channel_credentials(
        root_certificates=certificates.read_authorities(files.ca) if files.ca else None,
        private_key=pair.key if pair else None,
        certificate_chain=pair.chain if pair else None,
    )


def left_open(names: str) -> frozenset[str]:
    """What CSM_INSECURE asks for. Raises: SettingError for what it cannot."""
    words = frozenset(word.strip() for word in names.split(",") if word.strip())
    if words - {PLAINTEXT, NO_TOKENS}:
        raise SettingError(f"{INSECURE}={names!r}: must be a list of {PLAINTEXT}, {NO_TOKENS}")
    return words


def is_loopback(target: str) -> bool:
    """Whether every address of a gRPC target or listening address is on this machine alone."""
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
