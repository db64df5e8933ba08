"""What callers of the HTTP process may cost it: time, memory, connections. And its TLS."""

from __future__ import annotations

import asyncio
import random
import ssl

import httpx
import pytest
from cryptography import x509

from gateway.http.config import HttpSettings
from gateway.http.server import HttpServer
from services.runtime import tls
from services.runtime.settings import SettingError, read
from support.authority import Authority
from support.http_face import open_http

SPEECH = "/v1/audio/speech"
BODY = {"input": "Hello there.", "response_format": "pcm"}
HEAD = b"POST /v1/audio/speech HTTP/1.1\r\nHost: csm\r\nContent-Type: application/json\r\n"


async def connect(face):
    return await asyncio.open_connection("127.0.0.1", int(face.url.rpartition(":")[2]))


@pytest.mark.parametrize("sent", [b"", b"POST /v1/audio/sp", HEAD])
async def test_headers_come_in_time(open_chain, sent):
    chain = await open_chain()
    async with open_http(chain.addresses["gateway"], arrival_s=0.3) as face:
        reader, writer = await connect(face)
        writer.write(sent)
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()
        # A second request on a connection has no more time than the first.
        reader, writer = await connect(face)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: csm\r\n\r\n")
        assert (await reader.readline()).split()[1] == b"200"
        if sent:
            writer.write(sent)
            rest = await asyncio.wait_for(reader.read(), 5)
            assert b"HTTP/1.1" not in rest
        writer.close()


async def test_a_body_comes_in_time(open_chain, probe):
    chain = await open_chain()
    async with open_http(chain.addresses["gateway"], arrival_s=0.3) as face:
        reader, writer = await connect(face)
        writer.write(HEAD + b"Content-Length: 1000\r\n\r\n{")
        answer = await asyncio.wait_for(reader.read(), 5)
        assert answer.startswith(b"HTTP/1.1 408") and b"connection: close" in answer.lower()
        writer.close()
    assert not +probe.active


async def test_a_reader_that_takes_nothing_loses_its_connection_and_its_slot(open_chain, probe):
    chain = await open_chain()
    probe.frames = 4000  # 15 MB, more than sockets hold
    async with open_http(chain.addresses["gateway"], reader_stall_s=0.5) as face:
        _, writer = await connect(face)
        text = b'{"input": "Hello.", "response_format": "pcm"}'
        writer.write(HEAD + b"Content-Length: %d\r\n\r\n" % len(text) + text)
        await probe.until(lambda: probe.active["backbone"] == 1)
        await probe.until(lambda: not +probe.active, within_s=20)
        assert probe.generated < 4000
        writer.close()
        assert (await face.client.get("/health")).status_code == 200


async def test_a_broken_answer_is_plain_to_a_caller_of_http_1_0(open_chain, probe):
    """It has no chunks whose end could be missing."""
    chain = await open_chain(resumes=0)
    probe.frames, probe.break_at = 40, 20
    async with open_http(chain.addresses["gateway"]) as face:
        reader, writer = await connect(face)
        text = b'{"input": "Hello.", "response_format": "pcm"}'
        writer.write(HEAD.replace(b"HTTP/1.1", b"HTTP/1.0") + b"Content-Length: %d\r\n\r\n" % len(text) + text)
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(), 10)
        writer.close()


async def test_no_more_connections_than_allowed(open_chain):
    chain = await open_chain()
    async with open_http(chain.addresses["gateway"], max_connections=3) as face:
        others = [await connect(face) for _ in range(2)]
        reader, writer = await connect(face)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: csm\r\n\r\n")
        assert (await reader.readline()).split()[1] == b"503"
        for _, other in [*others, (reader, writer)]:
            other.close()


async def test_what_is_no_http_is_refused(open_chain):
    chain = await open_chain()
    dice = random.Random(1)
    async with open_http(chain.addresses["gateway"], arrival_s=2.0) as face:

        async def one(data):
            reader, writer = await connect(face)
            writer.write(data)
            writer.write_eof()
            try:
                answer = await asyncio.wait_for(reader.read(), 10)
            except ConnectionResetError:
                answer = b""
            writer.close()
            assert answer == b"" or answer.split()[1] in (
                b"400",
                b"401",
                b"404",
                b"405",
                b"408",
                b"411",
                b"413",
                b"415",
            ), answer

        samples = [dice.randbytes(dice.randrange(1, 400)) for _ in range(40)]
        samples += [HEAD + dice.randbytes(60) + b"\r\n\r\n" for _ in range(20)]
        samples += [
            HEAD + b"Content-Length: -1\r\n\r\n",
            HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
            HEAD + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n",
            HEAD + b"Transfer-Encoding: gzip\r\n\r\n",
            HEAD + b"X: " + b"a" * 100_000 + b"\r\n\r\n",
            HEAD + b"Authorization: Bearer \xff\xfe\r\nContent-Length: 14\r\n\r\n" + b'{"input": "a"}',
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"GET /%2e%2e/%2e%2e/etc/passwd HTTP/1.1\r\nHost: csm\r\n\r\n",
            b"GET /page/../app.py HTTP/1.1\r\nHost: csm\r\n\r\n",
        ]
        await asyncio.gather(*(one(sample) for sample in samples))
        assert (await face.client.get("/health")).status_code == 200


async def test_tls_and_its_new_certificate(open_chain, tmp_path):
    chain = await open_chain()
    authority = Authority()
    first = authority.issue()
    cert, key = first.write(tmp_path)
    context = ssl.create_default_context(cafile=authority.write(tmp_path))
    settings = {"tls_cert_file": cert, "tls_key_file": key}

    async def serial(url):
        _, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]), ssl=context)
        shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.close()
        return x509.load_der_x509_certificate(shown).serial_number

    async with open_http(chain.addresses["gateway"], **settings) as face:
        assert face.url.startswith("https://")
        async with httpx.AsyncClient(base_url=face.url, verify=context, trust_env=False, timeout=30) as client:
            assert (await client.post(SPEECH, json=BODY)).status_code == 200
        assert await serial(face.url) == first.serial
        second = authority.issue()
        second.write(tmp_path)
        assert await serial(face.url) == second.serial


async def test_tls_to_the_gateway(open_chain, tmp_path):
    authority = Authority()
    cert, key = authority.issue().write(tmp_path)
    ca = authority.write(tmp_path)
    credentials = tls.reloadable_channel_credentials(tls.ClientFiles(ca))
    chain = await open_chain(tls_cert_file=cert, tls_key_file=key, credentials=credentials)
    async with open_http(chain.addresses["gateway"], gateway_ca_file=ca) as face:
        assert (await face.client.post(SPEECH, json=BODY)).status_code == 200


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"listen": "0.0.0.0:0"}, "CSM_HTTP_LISTEN"),
        ({"gateway": "speech.example:443"}, "CSM_HTTP_GATEWAY_ADDRESS"),
        ({"tls_cert_file": "none.crt"}, "CSM_HTTP_TLS_KEY_FILE is not set"),
        ({"tls_cert_file": "none.crt", "tls_key_file": "none.key"}, "none.crt"),
        ({"gateway_ca_file": "none.crt"}, "CSM_HTTP_GATEWAY_CA_FILE"),
        ({"listen": "127.0.0.1:99999"}, "CSM_HTTP_LISTEN"),
    ],
)
async def test_settings_that_cannot_be_used(settings, says):
    server = HttpServer(read(HttpSettings, environ={}, **{"listen": "127.0.0.1:0", **settings}))
    with pytest.raises(SettingError, match=says):
        await server.start()
    await server.stop()


async def post(url, **headers):
    """From this machine to a server that listens to all."""
    async with httpx.AsyncClient(base_url=url.replace("0.0.0.0", "127.0.0.1"), trust_env=False, timeout=30) as client:
        return await client.post(SPEECH, json=BODY, headers=headers)


async def test_a_gateway_without_tokens_is_not_opened_to_the_world(open_chain):
    chain = await open_chain()
    beyond = {"listen": "0.0.0.0:0", "insecure": "plaintext"}
    async with open_http(chain.addresses["gateway"], **beyond) as face:
        for headers in ({}, {"authorization": "Bearer x"}):
            refused = await post(face.url, **headers)
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "open_gateway")
    async with open_http(chain.addresses["gateway"], **{**beyond, "insecure": "plaintext,no-tokens"}) as face:
        assert (await post(face.url)).status_code == 200


async def test_a_gateway_with_tokens_is(open_chain, tmp_path):
    tokens = tmp_path / "tokens.toml"
    tokens.write_text('[ann]\ntoken = "0123456789abcdef"\n')
    shown = "Bearer 0123456789abcdef"
    chain = await open_chain(tokens_file=str(tokens), metadata=[("authorization", shown)])
    async with open_http(chain.addresses["gateway"], listen="0.0.0.0:0", insecure="plaintext") as face:
        assert (await post(face.url)).status_code == 401
        assert (await post(face.url, authorization=shown)).status_code == 200
