"""TLS by file paths, and when a connection may do without.

Plaintext stays on this machine unless it is asked for by name (CSM_INSECURE=plaintext).
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import grpc
from opentelemetry import metrics

from services.runtime import certificates
from services.runtime.certificates import CertificateError, KeyPair
from services.runtime.reloadable_file import InvalidFile, ReloadableFile
from services.runtime.settings import ServerSettings, SettingError

log = logging.getLogger(__name__)
INSECURE = "CSM_INSECURE"
PLAINTEXT, NO_TOKENS = "plaintext", "no-tokens"

_expiry: dict[str, datetime] = {}  # of the certificates shown to callers and to servers


def _remaining(_: metrics.CallbackOptions) -> Iterable[metrics.Observation]:
    now = datetime.now(UTC)
    return [metrics.Observation((end - now).total_seconds(), {"shown_to": who}) for who, end in dict(_expiry).items()]


metrics.get_meter("csm").create_observable_gauge(
    "csm.tls.certificate.remaining", [_remaining], "s", "until the certificate in use expires; negative: since it did"
)


@dataclass(frozen=True)
class ClientFiles:
    """Paths of PEM files. ca: trusted authorities; None: the public ones. cert, key: of the client; None: no certificate."""

    ca: str | Path | None = None
    cert: str | Path | None = None
    key: str | Path | None = None

    def __bool__(self) -> bool:
        return bool(self.ca or self.cert or self.key)

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(Path(path) for path in (self.ca, self.cert, self.key) if path)


def channel_credentials(files: ClientFiles) -> grpc.ChannelCredentials:
    """What the files hold now. Raises: CertificateError."""
    if bool(files.cert) != bool(files.key):
        raise CertificateError(f"{files.cert or files.key}: a certificate and its key are given together or not at all")
    pair = _pair("servers", files.cert, files.key) if files.cert and files.key else None
    return grpc.ssl_channel_credentials(
        root_certificates=certificates.read_authorities(files.ca) if files.ca else None,
        private_key=pair.key if pair else None,
        certificate_chain=pair.chain if pair else None,
    )


def reloadable_channel_credentials(files: ClientFiles) -> ReloadableFile[grpc.ChannelCredentials]:
    """What the files hold at each new connection. Raises: InvalidFile for what they hold now."""
    return ReloadableFile("certificates for calls", files.paths, lambda: channel_credentials(files))


def server_credentials(settings: ServerSettings) -> grpc.ServerCredentials | None:
    """By CSM_TLS_*; every new connection gets what the files hold then. None is plaintext, where that may be.

    Raises: SettingError.
    """
    cert, key, ca = settings.tls_cert_file, settings.tls_key_file, settings.tls_client_ca_file
    if not (cert or key or ca):
        require_private("CSM_LISTEN", settings.listen, "CSM_TLS_CERT_FILE and CSM_TLS_KEY_FILE", settings.insecure)
        return None
    if not (cert and key):
        missing = "CSM_TLS_KEY_FILE" if cert else "CSM_TLS_CERT_FILE"
        raise SettingError(f"{missing} is not set: TLS needs both a certificate and its key")

    def load() -> grpc.ServerCertificateConfiguration:
        pair = _pair("callers", cert, key)
        authorities = certificates.read_authorities(ca) if ca else None
        return grpc.ssl_server_certificate_configuration([(pair.key, pair.chain)], authorities)

    try:
        files = ReloadableFile("certificates of this server", [path for path in (cert, key, ca) if path], load)
    except InvalidFile as error:
        names = "CSM_TLS_CERT_FILE, CSM_TLS_KEY_FILE" + (", CSM_TLS_CLIENT_CA_FILE" if ca else "")
        raise SettingError(f"{names}: {error}") from error
    used = files.current()

    def fetch() -> grpc.ServerCertificateConfiguration:
        """gRPC calls it before each handshake, in a thread of its own. None means no change."""
        nonlocal used
        current = files.current()
        changed, used = current is not used, current
        return current if changed else None  # type: ignore[return-value]  # the stubs leave out None

    return grpc.dynamic_ssl_server_credentials(used, fetch, require_client_authentication=bool(ca))


def _pair(shown_to: str, cert: str | Path, key: str | Path) -> KeyPair:
    pair = certificates.read_pair(cert, key)
    try:
        _expiry[shown_to] = end = certificates.expires(pair.chain)
    except ValueError as error:
        log.warning("%s: cannot tell when this certificate expires (%s)", cert, error)
        return pair
    if end <= datetime.now(UTC):  # no reason to stop: peers go by their own clocks
        log.warning("%s: this certificate expired on %s", cert, end.isoformat())
    return pair


def require_private(variable: str, address: str, remedy: str, insecure: str | None) -> None:
    """Raises: SettingError when plaintext to or at `address` would leave this machine and was not asked for."""
    if PLAINTEXT not in left_open(insecure) and not is_loopback(address):
        raise SettingError(
            f"{variable}={address!r}: beyond this machine TLS is spoken: set {remedy}, or {INSECURE}={PLAINTEXT}"
        )


def left_open(names: str | None) -> frozenset[str]:
    """What CSM_INSECURE asks for. Raises: SettingError for what it cannot."""
    words = frozenset(word.strip() for word in (names or "").split(",") if word.strip())
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
