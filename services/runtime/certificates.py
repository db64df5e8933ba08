"""Certificates and keys in PEM files, read whole and checked: what gRPC is given has been seen to fit together.

gRPC itself says little of a key that belongs to another certificate: every handshake fails, and the
log speaks of BoringSSL. Knows no gRPC.
"""

from __future__ import annotations

import base64
import re
import ssl
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from services.runtime.reloadable_file import InvalidFile

_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----(.+?)-----END CERTIFICATE-----", re.DOTALL)
_SEQUENCE, _VERSION, _UTC_TIME = 0x30, 0xA0, 0x17


_REFUSED = {  # what OpenSSL says of PEM that is well formed
    "KEY_VALUES_MISMATCH": "the key belongs to another certificate",
    "EE_KEY_TOO_SMALL": "the certificate's key is too short for OpenSSL's security level (RSA: 2048 bits or more)",
    "CA_KEY_TOO_SMALL": "an authority's key in the chain is too short for OpenSSL's security level",
    "CA_MD_TOO_WEAK": "a certificate is signed with a hash too weak for OpenSSL's security level",
}


class CertificateError(InvalidFile):
    """A file holds no usable certificate or key. The message names it and says why."""


@dataclass(frozen=True)
class KeyPair:
    """A certificate with those that vouch for it, and its private key; both PEM."""

    chain: bytes
    key: bytes = field(repr=False)


class _EncryptedError(Exception):
    pass


def _encrypted() -> bytes:
    raise _EncryptedError


def read_pair(cert_file: str | Path, key_file: str | Path) -> KeyPair:
    """Raises: CertificateError when one cannot be read, or they do not belong together."""
    pair = KeyPair(chain=_bytes(cert_file), key=_bytes(key_file))
    try:
        # The standard library takes files only; whoever reads while they change must read again.
        # Asked for a password when the key has one, where OpenSSL would ask the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert_file, key_file, password=_encrypted)
    except _EncryptedError:
        raise CertificateError(f"{key_file}: this key is encrypted: an unencrypted key is needed") from None
    except (ssl.SSLError, OSError) as error:
        reason = getattr(error, "reason", None)
        why = _REFUSED.get(reason)
        if why is None:
            why = f"not a PEM certificate and its unencrypted key ({(reason or str(error)).lower().replace('_', ' ')})"
        raise CertificateError(f"{cert_file}, {key_file}: {why}") from None
    return pair


def read_authorities(ca_file: str | Path) -> bytes:
    """The certificates to trust, PEM. Raises: CertificateError."""
    authorities = _bytes(ca_file)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=authorities.decode("ascii", "ignore"))
    except (ssl.SSLError, ValueError) as error:
        why = (getattr(error, "reason", None) or str(error)).lower().replace("_", " ")
        raise CertificateError(f"{ca_file}: not PEM certificates ({why})") from None
    return authorities


def expires(chain: bytes) -> datetime:
    """When the first certificate of a PEM chain does: `notAfter` of X.509 (RFC 5280, 4.1).

    Raises: ValueError when it is none.
    """
    found = _PEM.search(chain)
    if found is None:
        raise ValueError("no PEM certificate")
    certificate = base64.b64decode(found[1])
    try:
        return _expires(certificate)
    except IndexError as error:
        raise ValueError("not an X.509 certificate") from error


def _expires(certificate: bytes) -> datetime:
    _, to_be_signed, _ = _element(certificate, _element(certificate, 0)[1])
    tag, inside, after = _element(certificate, to_be_signed)
    if tag == _VERSION:
        _, inside, after = _element(certificate, after)  # the serial number, then
    for _ in ("signature", "issuer"):
        _, inside, after = _element(certificate, after)
    tag, inside, _ = _element(certificate, after)  # validity: notBefore, notAfter
    if tag != _SEQUENCE:
        raise ValueError("not an X.509 certificate")
    _, _, after = _element(certificate, inside)
    tag, inside, after = _element(certificate, after)
    text = certificate[inside:after].decode("ascii")
    if tag == _UTC_TIME:  # two digits of the year: 1950 to 2049
        text = ("19" if int(text[:2]) >= 50 else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)


def _element(data: bytes, at: int) -> tuple[int, int, int]:
    """The DER element that begins at `at`: its tag, where its content begins, where the next begins."""
    tag, length, inside = data[at], data[at + 1], at + 2
    if length & 0x80:
        count = length & 0x7F
        length, inside = int.from_bytes(data[inside : inside + count], "big"), inside + count
    return tag, inside, inside + length


def _bytes(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise CertificateError(f"{path}: {error.strerror}") from None
