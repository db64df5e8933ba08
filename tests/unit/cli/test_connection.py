"""How a command's options and environment become a client: TLS, tokens, and what stays shut by default."""

import os
import subprocess
import sys
from contextlib import AsyncExitStack
from types import SimpleNamespace

import pytest
from csm_client import SpeechClient, exceptions

from gateway.cli import connection, diagnosis, state
from gateway.cli.bench.plan import Plan
from gateway.cli.bench.worker import orders, read_orders
from gateway.cli.commands import voices
from support.authority import Authority
from support.fake_speech import serving

TOKEN = "an-unknown-token"
VARIABLES = ("CSM_TLS_CA_FILE", "CSM_TLS_CERT_FILE", "CSM_TLS_KEY_FILE", "CSM_TOKEN", "CSM_INSECURE", "CSM_ADDRESS")


def remote_options(*arguments):
    """The options that every command has which calls a gateway."""
    return SimpleNamespace(**voices.command.make_context("voices", [str(one) for one in arguments]).params)


@pytest.fixture
def client(monkeypatch):
    """client(options, **environment)"""

    def make(*options, **environment):
        for name in VARIABLES:
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, str(value))
        return connection.client(remote_options(*options))

    return make


@pytest.fixture
async def guarded(tmp_path):
    """(fake, address, files): a server that wants a certificate, and what a client needs."""
    authority = Authority()
    cert, key = authority.issue().write(tmp_path, "server")
    ca = authority.write(tmp_path)
    async with serving(tls_cert_file=cert, tls_key_file=key, tls_client_ca_file=ca) as (fake, address):
        yield fake, address, (ca, *authority.issue().write(tmp_path, "client"))


async def test_files_and_token_by_options(guarded, client, tmp_path):
    fake, address, (ca, cert, key) = guarded
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    options = ("--tls-ca", ca, "--tls-cert", cert, "--tls-key", key, "--token-file", tmp_path / "token")
    async with client("--address", address, *options) as speech:
        await speech.wait_ready(5)
        await speech.voices()
        async for _ in speech.stream("hello"):
            pass
    assert [metadata["authorization"] for metadata in fake.metadata] == [f"Bearer {TOKEN}"] * 2


async def test_files_and_token_by_the_environment(guarded, client):
    fake, address, (ca, cert, key) = guarded
    files = {"CSM_TLS_CA_FILE": ca, "CSM_TLS_CERT_FILE": cert, "CSM_TLS_KEY_FILE": key}
    async with client(CSM_ADDRESS=address, CSM_TOKEN=TOKEN, **files) as speech:
        await speech.voices()
    assert fake.metadata[0]["authorization"] == f"Bearer {TOKEN}"


async def test_the_chain_of_csm_up_is_in_plaintext_whatever_the_environment_names(
    guarded, client, monkeypatch, tmp_path
):
    _, _, (ca, cert, key) = guarded
    monkeypatch.setenv("CSM_STATE_DIR", str(tmp_path / "state"))
    async with serving() as (_, address):
        state.register(state.Running(address, os.getpid(), None), tmp_path / "state")
        async with client(CSM_TLS_CA_FILE=ca, CSM_TLS_CERT_FILE=cert, CSM_TLS_KEY_FILE=key) as speech:
            assert (await speech.voices(timeout_s=5)).bundle.bundle_id


async def test_without_them_the_server_gives_nothing(guarded, client):
    fake, address, (ca, *_) = guarded
    for options in ((), ("--tls-ca", ca)):
        async with client("--address", address, *options) as speech:
            with pytest.raises(exceptions.Unavailable):
                await speech.voices(timeout_s=5)
    assert not fake.requests


@pytest.mark.parametrize("speaks_tls", [True, False])
async def test_a_handshake_that_fails_is_called_one(guarded, client, tmp_path, speaks_tls):
    another = Authority("another").write(tmp_path)
    async with AsyncExitStack() as stack:
        address = guarded[1] if speaks_tls else (await stack.enter_async_context(serving()))[1]
        options = ["--address", address, "--tls-ca", another]
        speech = await stack.enter_async_context(client(*options))
        with pytest.raises(exceptions.Unavailable) as caught:
            await speech.voices(timeout_s=5)
        line = await diagnosis.explain(address, speech.is_encrypted, str(caught.value))
        if speaks_tls:
            assert line.startswith(f"{address} and we cannot agree on TLS") and "--tls-ca" in line
        else:
            assert line.startswith(f"{address} speaks plaintext and we spoke TLS") and "CSM_INSECURE" in line


async def test_a_token_that_changes_is_asked_for_at_each_call():
    tokens = iter(["first", "second"])
    async with serving() as (fake, address), SpeechClient(address, token=lambda: next(tokens)) as speech:
        await speech.voices()
        await speech.voices()
    assert [metadata["authorization"] for metadata in fake.metadata] == ["Bearer first", "Bearer second"]


@pytest.mark.parametrize(
    ("environment", "options", "why"),
    [
        ({"CSM_TOKEN": f"{TOKEN} {TOKEN}"}, (), "CSM_TOKEN: not a token"),
        ({"CSM_TOKEN": f"{TOKEN}é"}, (), "CSM_TOKEN: not a token"),
        ({}, ("--token-file", "/dev/null"), "/dev/null: not a token"),
        ({}, ("--tls-ca", "/dev/null"), "/dev/null: not PEM"),
        ({}, ("--tls-cert", "no.crt"), "together or not at all"),
    ],
)
async def test_what_is_of_no_use_is_named_and_not_shown(client, environment, options, why):
    with pytest.raises(OSError, match=why) as caught:
        client(*options, **environment)
    assert TOKEN not in str(caught.value)


async def test_a_token_file_that_is_no_text_is_named(client, tmp_path):
    (tmp_path / "token").write_bytes(b"\xff\xfe\x00binary")
    with pytest.raises(OSError, match="token: not a token"):
        client("--token-file", tmp_path / "token")


async def test_a_token_from_a_pipe_reaches_the_workers_of_a_bench(tmp_path):
    reading, writing = os.pipe()
    os.write(writing, TOKEN.encode())
    os.close(writing)
    args = remote_options("--address", "127.0.0.1:1", "--token-file", f"/dev/fd/{reading}")
    async with connection.client(args):
        pass
    os.close(reading)
    args, _ = read_orders(orders(args, Plan(streams=1)))
    async with serving() as (fake, args.address), connection.client(args) as speech:
        await speech.voices()
    assert fake.metadata[0]["authorization"] == f"Bearer {TOKEN}"


async def test_beyond_this_machine_the_client_speaks_tls_unless_told_otherwise(client, caplog):
    for address, insecure, encrypted in (
        ("127.0.0.1:1", "", False),
        ("speech.example:1", "", True),
        ("speech.example:1", "no-tokens", True),
        ("speech.example:1", "plaintext", False),
    ):
        caplog.clear()
        async with client("--address", address, CSM_INSECURE=insecure) as speech:
            assert (speech._credentials is not None) is encrypted
            assert ("in plaintext" in caplog.text) is (insecure == "plaintext")


def test_the_help_names_the_variables():
    run = subprocess.run([sys.executable, "-m", "gateway.cli", "say", "--help"], capture_output=True, text=True)
    for name in ("CSM_TLS_CA_FILE", "CSM_TLS_CERT_FILE", "CSM_TLS_KEY_FILE", "CSM_TOKEN"):
        assert name in run.stdout
