"""Riva's clients through Envoy, in TLS, with a token: riva.client sends it twice, and Envoy joins the two."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import grpc
import pytest
from csm_client import SpeechClient

from support.authority import Authority
from support.fake_stages import SAMPLES_PER_FRAME
from support.proxies import running

TOKEN = "s3cret"
SPOKEN = 10 * SAMPLES_PER_FRAME * 2


@pytest.fixture
async def envoy(open_chain, tmp_path):
    """(address, file of the authority)."""
    if not (Path(sys.executable).parent / "envoy").exists():
        pytest.skip("no Envoy")
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(f'[ann]\nsha256 = ["{hashlib.sha256(TOKEN.encode()).hexdigest()}"]\n')
    chain = await open_chain(tokens_file=str(tokens), metadata=[("authorization", f"Bearer {TOKEN}")])
    authority = Authority()
    authority.issue("localhost").write(tmp_path)
    root = authority.write(tmp_path)
    credentials = grpc.ssl_channel_credentials(authority.pem)
    async with (
        running("envoy.yaml", tmp_path, chain.addresses["gateway"], "127.0.0.1:1") as address,
        SpeechClient(address, credentials=credentials) as client,
    ):
        await client.wait_ready(60)  # riva.client does not wait for a server that still starts
        yield address, str(root)


async def test_a_token_that_comes_twice_is_one(envoy, run):
    address, root = envoy
    own = {"GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": root}
    options = {"root": root, "token": TOKEN, "sample_rate_hz": 24_000}
    result = await run("riva_calls.py", address, "online", options)
    assert sum(result.get("sizes", [])) == SPOKEN, result
    result = await run("pipecat_calls.py", address, {"tls": True, "token": TOKEN}, **own)
    assert not result["errors"] and sum(result["sizes"]) == SPOKEN
    result = await run("livekit_calls.py", address, "stream", {"tls": True, "token": TOKEN}, **own)
    assert sum(result["sizes"])
    wrong = await run("riva_calls.py", address, "online", {**options, "token": "guess"})
    assert wrong["code"] == "UNAUTHENTICATED"
