"""Certificates and keys in PEM files, read whole and checked before gRPC gets them.

gRPC itself says little of a key that belongs to another certificate: every handshake fails, and the
log speaks of BoringSSL. Knows no gRPC.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes, PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from services.runtime.reloadable_file import InvalidFile

_MIN_RSA_BITS = 2048
_WEAK_HASHES = ("md5", "sha1")
_BEGIN = b"-----BEGIN CERTIFICATE-----"


class CertificateError(InvalidFile):
    """A file holds no usable certificate or key. The message names it and says why."""


@dataclass(frozen=True)
class KeyPair:
    """A certificate with its intermediates, and its private key; both PEM."""

    chain: bytes
    key: bytes = field(repr=False)


def read_pair(cert_file: str | Path, key_file: str | Path) -> KeyPair:
    """Raises: CertificateError when one cannot be read, or they do not belong together."""
    pair = KeyPair(chain=_bytes(cert_file), key=_bytes(key_file))
    certificates = _certificates(cert_file, pair.chain)
    try:
        key = load_pem_private_key(pair.key, password=None)
    except TypeError:
        raise CertificateError(f"{key_file}: this key is encrypted: an unencrypted key is needed") from None
    except (ValueError, UnsupportedAlgorithm):
        raise CertificateError(f"{key_file}: not an unencrypted private key in PEM") from None
    public = certificates[0].public_key()
    if _spki(public) != _spki(key.public_key()):
        raise CertificateError(f"{cert_file}, {key_file}: the key belongs to another certificate")
    if isinstance(public, rsa.RSAPublicKey) and public.key_size < _MIN_RSA_BITS:
        raise CertificateError(
            f"{cert_file}: the certificate's RSA key is too short: {public.key_size} bits, {_MIN_RSA_BITS} or more are needed"
        )
    for certificate in certificates:
        algorithm = certificate.signature_hash_algorithm
        if algorithm is not None and algorithm.name in _WEAK_HASHES:
            raise CertificateError(
                f"{cert_file}: a certificate is signed with {algorithm.name.upper()}, which is too weak"
            )
    return pair


def read_authorities(ca_file: str | Path) -> bytes:
    """The certificates to trust, PEM. Raises: CertificateError."""
    authorities = _bytes(ca_file)
    _certificates(ca_file, authorities)
    return authorities


def expires(chain: bytes) -> datetime:
    """When the first certificate of a PEM chain expires, in UTC. Raises: ValueError when there is none."""
    return x509.load_pem_x509_certificates(chain)[0].not_valid_after_utc


def _certificates(path: str | Path, pem: bytes) -> list[x509.Certificate]:
    """All certificates of a file. Raises: CertificateError, also for one that is cut off."""
    try:
        found = x509.load_pem_x509_certificates(pem)
    except ValueError:
        found = []
    if not found or len(found) != pem.count(_BEGIN):
        raise CertificateError(f"{path}: not PEM certificates")
    return found


def _spki(key: CertificatePublicKeyTypes | PublicKeyTypes) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _bytes(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise CertificateError(f"{path}: {error.strerror}") from None
