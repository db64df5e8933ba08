"""Proxy variables are for other machines: what this machine says to itself never goes through them."""

import asyncio
import subprocess
import sys

import pytest

from gateway.cli.supervisor import Child, Supervisor
from gateway.cli.up import Plan, _common_env
from support.fake_speech import serving

PROXIES = ("http_proxy", "https_proxy", "grpc_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy")
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def proxies(monkeypatch):
    for name in PROXIES:
        monkeypatch.setenv(name, NOWHERE)
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_csm_talks_to_this_machine(proxies, tmp_path, host):
    async with serving() as (_, address):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "gateway.cli", "say", "hello", "-o", str(tmp_path / "out.wav"),
            "--address", address.replace("127.0.0.1", host), stderr=subprocess.PIPE,
        )  # fmt: skip
        _, err = await asyncio.wait_for(process.communicate(), 60)
    assert (process.returncode, err) == (0, b"")


async def test_csm_up_waits_for_its_services_and_not_for_a_proxy(proxies, tmp_path):
    async with serving() as (_, address):
        child = Child("gateway", ("sleep", "60"), address)
        async with Supervisor([child], tmp_path) as supervisor:
            ready = []
            await asyncio.wait_for(supervisor.wait_ready(30, lambda child, _: ready.append(child.name)), 20)
    assert ready == ["gateway"]


@pytest.mark.parametrize(
    ("given", "passed"), [(None, "127.0.0.1,localhost"), ("a.example", "a.example,127.0.0.1,localhost")]
)
def test_the_services_send_their_spans_to_this_machine_directly(proxies, monkeypatch, tmp_path, given, passed):
    if given:
        monkeypatch.setenv("no_proxy", given)
    env = _common_env(
        Plan("embedded", dict.fromkeys(("gateway", "tokenizer", "backbone", "codec", "watermark"), 1), tmp_path)
    )
    assert env["no_grpc_proxy"] == passed
