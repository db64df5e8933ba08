"""A gateway that cannot be reached: the line names the fault, found by looking, for faults made on purpose."""

import asyncio
import contextlib
import socket

import grpc
import pytest
from csm_client import SpeechClient, exceptions

from gateway.cli import diagnosis
from gateway.cli.diagnosis import split_address
from support.authority import Authority
from support.fake_speech import serving


async def fault(address, **options):
    """What is said of a call to `address` that fails."""
    async with SpeechClient(address, **options) as client:
        with pytest.raises(exceptions.Unavailable) as caught:
            await client.voices(timeout_s=8)
        line = await diagnosis.explain(address, client.is_encrypted, str(caught.value))
    assert len(line.splitlines()) == 1
    return line


@contextlib.asynccontextmanager
async def listening(answer, **options):
    """The address of a server that does `answer` with each connection."""
    server = await asyncio.start_server(answer, "127.0.0.1", 0, **options)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def test_a_port_where_nothing_listens():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
        assert (await fault(address)).startswith(f"nothing listens at {address} (connection refused); `csm up` starts")


async def test_a_name_that_does_not_resolve():
    line = await fault("no-such-host.invalid:50050", insecure=True)
    assert line.startswith("no-such-host.invalid:50050: the name no-such-host.invalid does not resolve (")


async def test_an_address_that_answers_nothing(monkeypatch):
    monkeypatch.setattr(diagnosis, "_TIMEOUT_S", 0.3)

    async def never(*args, **options):
        await asyncio.Event().wait()

    monkeypatch.setattr(asyncio, "open_connection", never)
    line = await diagnosis.explain("127.0.0.1:1", False, "timed out")
    assert line == "127.0.0.1:1 does not answer within 0.3 s: wrong address, or a firewall between"


async def test_plaintext_to_a_server_of_tls(tmp_path):
    cert, key = Authority().issue().write(tmp_path, "server")
    async with serving(tls_cert_file=cert, tls_key_file=key) as (_, address):
        line = await fault(address)
    assert line == f"{address} speaks TLS and we spoke plaintext; --tls-ca names the authority to trust"


async def test_tls_to_a_server_of_plaintext():
    async with serving() as (_, address):
        line = await fault(address, credentials=grpc.ssl_channel_credentials())
    assert line.startswith(f"{address} speaks plaintext and we spoke TLS; CSM_INSECURE=plaintext")


async def test_a_certificate_that_is_not_trusted(tmp_path):
    cert, key = Authority().issue().write(tmp_path, "server")
    async with serving(tls_cert_file=cert, tls_key_file=key) as (_, address):
        line = await fault(address, credentials=grpc.ssl_channel_credentials())
    assert line.startswith(f"{address} and we cannot agree on TLS (") and "certificate" in line.lower()


async def test_a_server_that_wants_our_certificate(tmp_path):
    authority = Authority()
    cert, key = authority.issue().write(tmp_path, "server")
    ca = authority.write(tmp_path)
    async with serving(tls_cert_file=cert, tls_key_file=key, tls_client_ca_file=ca) as (_, address):
        assert "speaks TLS and we spoke plaintext" in await fault(address)


async def test_a_server_of_another_kind():
    async def http(reader, writer):
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    async with listening(http) as address:
        line = await fault(address)
    assert line.startswith((f"{address} speaks something else than gRPC", f"{address} ended the call"))


async def test_a_server_that_is_not_ready():
    async with serving() as (fake, address):
        fake.ready = False
        async with SpeechClient(address) as client:
            with pytest.raises(exceptions.Unavailable):
                while True:
                    await client.wait_ready(0.3)
                    await asyncio.sleep(0.05)
        assert "nothing listens" not in await fault(address)


@pytest.mark.parametrize(
    ("address", "place"),
    [
        ("localhost:1", ("localhost", 1)),
        ("[::1]:50050", ("::1", 50050)),
        ("dns:///speech.example:443", ("speech.example", 443)),
        ("unix:/tmp/socket", None),
        ("ipv4:127.0.0.1:1", None),
    ],
)
def test_addresses(address, place):
    assert split_address(address) == place


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://speech.example:1", "is a URL"),
        ("https://speech.example", "is a URL"),
        ("speech.example", "has no port"),
        ("::1", "has no port"),
        ("speech.example:", "is not host:port"),
        ("speech.example:http", "is not host:port"),
        ("speech.example:70000", "port from 1 to 65535"),
        (":50050", "is not host:port"),
    ],
)
def test_wrong_addresses(address, words):
    with pytest.raises(ValueError, match=words):
        split_address(address)
