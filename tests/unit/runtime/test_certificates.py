"""Certificate files: what is taken, what is refused, and the words for it."""

import datetime
import re

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from services.runtime import tls
from services.runtime.certificates import CertificateError, expires, read_authorities, read_pair
from services.runtime.settings import SettingError
from support.authority import Authority, Issued


@pytest.fixture(scope="module")
def authority():
    return Authority()


def test_a_pair_is_read_as_it_stands(authority, tmp_path):
    issued = authority.issue()
    pair = read_pair(*issued.write(tmp_path))
    assert (pair.chain, pair.key) == (issued.cert, issued.key)
    assert issued.key.decode()[30:60] not in repr(pair)


@pytest.mark.parametrize(
    ("mutate", "why"),
    [
        (lambda one, other: (one.cert, other.key), "the key belongs to another certificate"),
        (lambda one, other: (one.cert[:300], one.key), "not PEM certificates"),
        (lambda one, other: (b"", one.key), "not PEM certificates"),
        (lambda one, other: (one.cert, one.key[:60]), "not an unencrypted private key"),
        (lambda one, other: (one.cert + other.cert[:300], one.key), "not PEM certificates"),
        (lambda one, other: (one.key, one.cert), "not PEM certificates"),
    ],
    ids=["another's key", "half a certificate", "empty", "half a key", "half a chain", "exchanged"],
)
def test_what_does_not_fit_is_refused(authority, tmp_path, mutate, why):
    one, other = authority.issue(), authority.issue()
    (tmp_path / "a.crt").write_bytes(mutate(one, other)[0])
    (tmp_path / "a.key").write_bytes(mutate(one, other)[1])
    with pytest.raises(CertificateError, match=why) as caught:
        read_pair(tmp_path / "a.crt", tmp_path / "a.key")
    assert re.search(r"a\.(crt|key)", str(caught.value)) and "\n" not in str(caught.value)


@pytest.mark.parametrize("password", [b"secret", b"none"])
def test_an_encrypted_key_is_refused_and_asks_no_terminal(authority, tmp_path, password):
    issued = authority.issue()
    key = serialization.load_pem_private_key(issued.key, None).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(password)
    )
    cert, path = issued.write(tmp_path)
    (tmp_path / "tls.key").write_bytes(key)
    with pytest.raises(CertificateError, match="unencrypted key"):
        read_pair(cert, path)


def test_a_short_rsa_key_is_refused(tmp_path):
    key = rsa.generate_private_key(65537, 1024)
    name, now = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "short")]), datetime.datetime.now(datetime.UTC)
    cert = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    pair = Issued(cert.public_bytes(serialization.Encoding.PEM), pem, 1).write(tmp_path)
    with pytest.raises(CertificateError, match=r"tls.crt: the certificate's RSA key is too short: 1024 bits"):
        read_pair(*pair)


def test_authorities(authority, tmp_path):
    other = Authority("other")
    assert read_authorities(authority.write(tmp_path, also=other)) == authority.pem + other.pem
    for content in (b"", b"text", authority.pem[:300], authority.pem + other.pem[:300], b"\xff\xfe"):
        (tmp_path / "ca.crt").write_bytes(content)
        with pytest.raises(CertificateError, match=r"ca.crt: not PEM certificates"):
            read_authorities(tmp_path / "ca.crt")
    with pytest.raises(CertificateError, match="No such file"):
        read_authorities(tmp_path / "none")


@pytest.mark.parametrize("days", [-400, -1, 1, 365, 40 * 365])  # the last beyond 2049: another kind of time
def test_the_end_of_a_certificate(authority, days):
    issued = authority.issue(days=days)
    assert expires(issued.cert + authority.pem) == x509.load_pem_x509_certificate(issued.cert).not_valid_after_utc
    assert expires(issued.cert).tzinfo is datetime.UTC


def test_a_certificate_for_calls_comes_with_its_key(authority, tmp_path):
    cert, key = authority.issue().write(tmp_path)
    for files in (tls.ClientFiles(cert=cert), tls.ClientFiles(key=key)):
        with pytest.raises(CertificateError, match="together or not at all"):
            tls.channel_credentials(files)


@pytest.mark.parametrize(
    ("target", "here"),
    [
        ("127.0.0.1:1", True), ("127.8.9.1:1", True), ("localhost:1", True), ("[::1]:1", True), ("unix:/run/csm", True),
        ("unix:///run/csm", True), ("dns:///localhost:1", True), ("dns:localhost:1", True),
        ("ipv4:127.0.0.1:1,127.0.0.2:1", True), ("ipv6:[::1]:1", True),
        ("0.0.0.0:1", False), ("[::]:1", False), (":1", False), ("10.0.0.1:1", False), ("backbone:1", False),
        ("dns:///backbone:1", False), ("ipv4:127.0.0.1:1,10.0.0.1:1", False), ("localhost.example:1", False),
        ("xds:///localhost", False), ("", False),
    ],
)  # fmt: skip
def test_what_stays_on_this_machine(target, here):
    assert tls.is_loopback(target) is here


def test_what_may_be_left_open_is_asked_for_by_name():
    assert tls.left_open(None) == tls.left_open("") == frozenset()
    assert tls.left_open("plaintext, no-tokens") == {"plaintext", "no-tokens"}
    with pytest.raises(SettingError, match="must be a list of plaintext, no-tokens"):
        tls.left_open("plaintext,yes")
