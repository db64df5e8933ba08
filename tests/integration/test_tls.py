"""TLS between a real server and real channels on loopback, with certificates made here: who is refused, what is renewed."""

import asyncio
import logging
import re
import ssl
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from csm.codec.v1 import codec_pb2, codec_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.runtime.server import Stage, StageServer
from services.runtime.settings import ServerSettings, SettingError, read
from services.runtime.tls import ClientFiles, reloadable_channel_credentials
from support.authority import SERVER, Authority
from support.channels import open_channel

ASK = codec_pb2.GetModelInfoRequest()


class Codec(codec_pb2_grpc.CodecServiceServicer):
    """Answers each message; remembers the serial number of the certificate that its last caller showed."""

    shown: int | None = None

    async def GetModelInfo(self, request, context):
        for pem in context.auth_context().get("x509_pem_cert", ()):
            self.shown = x509.load_pem_x509_certificate(pem).serial_number
        return codec_pb2.GetModelInfoResponse(slots_capacity=3)

    async def Decode(self, request_iterator, context):
        async for _ in request_iterator:
            yield codec_pb2.DecodeResponse(finished=codec_pb2.DecodeFinished(frames=1))


class Site:
    """One server with TLS, its authority and folders of files; channels to it."""

    def __init__(self, stack: AsyncExitStack, folder: Path):
        self._stack, self.folder, self.client_folder = stack, folder / "server", folder / "client"
        self.folder.mkdir()
        self.client_folder.mkdir()
        self.authority, self.codec = Authority(), Codec()

    async def serve(self, issued=None, **overrides) -> None:
        self.issued = issued or self.authority.issue()
        cert, key = self.issued.write(self.folder)
        settings = read(ServerSettings, {}, tls_cert_file=cert, tls_key_file=key, **overrides)
        stage = Stage(
            "csm.codec.v1.CodecService",
            lambda server: codec_pb2_grpc.add_CodecServiceServicer_to_server(self.codec, server),
        )
        self.server = StageServer(stage, settings)
        self.address = await self.server.start()
        self._stack.push_async_callback(self.server.stop, 0)

    def files(self, authority=None, shows=None) -> ClientFiles:
        """What a client is given: whom it trusts, what it shows."""
        cert, key = shows.write(self.client_folder) if shows else (None, None)
        return ClientFiles(ca=(authority or self.authority).write(self.client_folder), cert=cert, key=key)

    def channel(self, files: ClientFiles | None) -> grpc.aio.Channel:
        channel = open_channel(self.address, credentials=reloadable_channel_credentials(files) if files else None)
        self._stack.push_async_callback(channel.close)
        return channel

    async def ask(self, files: ClientFiles | None) -> str:
        """How one call on a fresh connection ends: OK, or why there is no connection."""
        channel = self.channel(files)
        try:
            await codec_pb2_grpc.CodecServiceStub(channel).GetModelInfo(ASK, timeout=5)
            return "OK"
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            return error.details()

    async def serial(self) -> int:
        """Of the certificate that a new connection is shown; seen by OpenSSL, not by gRPC."""
        context = ssl.create_default_context(cadata=self.authority.pem.decode())
        context.set_alpn_protocols(["h2"])
        host, _, port = self.address.rpartition(":")
        _, writer = await asyncio.open_connection(host, int(port), ssl=context)
        try:
            der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
            return x509.load_der_x509_certificate(der).serial_number
        finally:
            writer.transport.abort()


@pytest.fixture
async def site(tmp_path):
    async with AsyncExitStack() as stack:
        yield Site(stack, tmp_path)


async def test_a_caller_who_trusts_the_authority_gets_through(site):
    await site.serve()
    assert await site.ask(site.files()) == "OK"


async def test_a_server_of_another_authority_is_refused(site):
    await site.serve()
    assert "CERTIFICATE_VERIFY_FAILED" in await site.ask(site.files(Authority("another")))


async def test_an_expired_server_is_refused(site):
    await site.serve(site.authority.issue(days=-1))
    assert "certificate has expired" in await site.ask(site.files())


async def test_a_server_of_another_name_is_refused(site):
    await site.serve(site.authority.issue("backbone.example", "10.1.2.3"))
    assert re.search("Hostname Verification|Peer name", await site.ask(site.files()))


async def test_plaintext_gets_no_answer(site):
    await site.serve()
    assert await site.ask(None) != "OK"


async def test_callers_must_show_a_certificate_of_the_authority(site):
    await site.serve(tls_client_ca_file=site.authority.write(site.folder))
    assert await site.ask(site.files()) != "OK"
    assert await site.ask(site.files(shows=Authority("another").issue())) != "OK"
    assert await site.ask(site.files(shows=site.authority.issue(days=-1))) != "OK"
    assert await site.ask(site.files(shows=site.authority.issue(uses=SERVER))) != "OK", "a stage is no gateway"
    good = site.authority.issue()
    assert await site.ask(site.files(shows=good)) == "OK"
    assert site.codec.shown == good.serial


async def test_health_answers_in_plaintext_on_its_own_port_and_nothing_else_does(site):
    await site.serve(tls_client_ca_file=site.authority.write(site.folder), health_listen="127.0.0.1:0")
    async with grpc.aio.insecure_channel(site.server.health_address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("liveness", "readiness"):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=name), timeout=5)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await codec_pb2_grpc.CodecServiceStub(channel).GetModelInfo(ASK, timeout=5)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        await site.server.drain()
        answer = await health.Check(health_pb2.HealthCheckRequest(service="readiness"), timeout=5)
        assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING


async def echo(call) -> int:
    await call.write(codec_pb2.DecodeRequest())
    return (await call.read()).finished.frames


async def test_a_renewed_certificate_is_shown_to_new_connections_and_cuts_no_stream(site):
    await site.serve()
    call = codec_pb2_grpc.CodecServiceStub(site.channel(site.files())).Decode()
    assert await echo(call) == 1
    assert await site.serial() == site.issued.serial
    for _ in range(3):
        renewed = site.authority.issue()
        renewed.write(site.folder)
        assert await site.serial() == renewed.serial
        assert await echo(call) == 1
    assert await site.ask(site.files()) == "OK"
    call.cancel()


async def test_half_written_files_leave_the_old_ones_in_use_and_the_log_says_so(site, caplog):
    caplog.set_level(logging.INFO)
    await site.serve()
    renewed = site.authority.issue()
    cert, key = site.folder / "tls.crt", site.folder / "tls.key"
    for write in (
        lambda: cert.write_bytes(renewed.cert[:200]),
        lambda: cert.write_bytes(renewed.cert),  # its key is still the other's
        lambda: key.write_bytes(b""),
        lambda: key.unlink(),
    ):
        caplog.clear()
        write()
        for _ in range(2):
            assert await site.serial() == site.issued.serial
        (warning,) = [
            record for record in caplog.records if record.levelno >= logging.WARNING and "stay" in record.message
        ]
        assert str(cert) in warning.message or str(key) in warning.message
        assert renewed.key.decode()[30:60] not in caplog.text
    key.write_bytes(renewed.key)
    assert await site.serial() == renewed.serial


async def test_an_authority_for_callers_is_renewed_too(site):
    old, new = Authority("old"), Authority("new")
    await site.serve(tls_client_ca_file=old.write(site.folder))
    before, after = old.issue(), new.issue()
    assert await site.ask(site.files(shows=before)) == "OK"
    assert await site.ask(site.files(shows=after)) != "OK"
    new.write(site.folder)
    assert await site.ask(site.files(shows=before)) != "OK"
    assert await site.ask(site.files(shows=after)) == "OK"


async def until_shown(site, stub, issued, within_s=10):
    async with asyncio.timeout(within_s):
        while site.codec.shown != issued.serial:
            await stub.GetModelInfo(ASK, timeout=5)
            await asyncio.sleep(0.01)


async def test_a_channel_shows_its_renewed_certificate_and_cuts_no_stream(site):
    await site.serve(tls_client_ca_file=site.authority.write(site.folder))
    first = site.authority.issue()
    channel = site.channel(site.files(shows=first))
    stub = codec_pb2_grpc.CodecServiceStub(channel)
    await until_shown(site, stub, first)
    call = stub.Decode()
    assert await echo(call) == 1
    for _ in range(2):
        renewed = site.authority.issue()
        renewed.write(site.client_folder)
        await until_shown(site, stub, renewed)
        assert await echo(call) == 1
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF and await call.code() is grpc.StatusCode.OK
    async with asyncio.timeout(5):
        while channel._closing or set(channel._calls) - {channel._channel}:  # the old connections go
            await asyncio.sleep(0.01)


async def test_a_certificate_that_servers_do_not_trust_yet_interrupts_no_call(site, caplog):
    await site.serve(tls_client_ca_file=site.authority.write(site.folder))
    first, other = site.authority.issue(), Authority("other")
    stub = codec_pb2_grpc.CodecServiceStub(site.channel(site.files(shows=first)))
    await until_shown(site, stub, first)
    ahead = other.issue()
    ahead.write(site.client_folder)
    async with asyncio.timeout(10):
        while "cannot be reached with the new certificates" not in caplog.text:
            await stub.GetModelInfo(ASK, timeout=5)
            await asyncio.sleep(0.01)
    assert site.codec.shown == first.serial
    site.authority.write(site.folder, also=other)
    await until_shown(site, stub, ahead)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            {"listen": "0.0.0.0:0"},
            "CSM_LISTEN='0.0.0.0:0': .* set CSM_TLS_CERT_FILE and CSM_TLS_KEY_FILE, or CSM_INSECURE=plaintext",
        ),
        ({"listen": "0.0.0.0:0", "insecure": "no-tokens"}, "CSM_INSECURE=plaintext"),
        ({"insecure": "everything"}, "CSM_INSECURE='everything': must be a list of plaintext, no-tokens"),
        ({"tls_cert_file": "a.crt"}, "CSM_TLS_KEY_FILE is not set"),
        ({"tls_client_ca_file": "a.crt"}, "CSM_TLS_CERT_FILE is not set"),
        (
            {"tls_cert_file": "no.crt", "tls_key_file": "no.key"},
            "CSM_TLS_CERT_FILE, CSM_TLS_KEY_FILE: no.crt: No such file",
        ),
    ],
)
async def test_what_is_wrong_with_the_settings_is_one_line(overrides, line):
    server = StageServer(Stage("csm.codec.v1.CodecService", lambda server: None), read(ServerSettings, {}, **overrides))
    with pytest.raises(SettingError, match=line) as caught:
        await server.start()
    assert "\n" not in str(caught.value)


async def test_plaintext_beyond_this_machine_is_asked_for_by_name_and_warned_of(caplog):
    settings = read(ServerSettings, {}, listen="0.0.0.0:0", insecure="plaintext")
    server = StageServer(Stage("csm.codec.v1.CodecService", lambda server: None), settings)
    await server.start()
    await server.stop(0)
    assert [record.message for record in caplog.records if record.levelno == logging.WARNING] == [
        "serves in plaintext beyond this machine, as CSM_INSECURE asks"
    ]
