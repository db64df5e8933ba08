"""Five real processes, mutual TLS on every hop and tokens at the gateway: spoken through, and exchanged while a stream runs."""

import asyncio
import os
import sys
import wave

import pytest
from csm_client import SpeechClient, exceptions

from services.runtime import tls
from support.authority import Authority
from support.processes import MODULES, ROOT, Processes

pytestmark = pytest.mark.slow

OLD, NEW = "the-old-token-of-the-radio", "the-new-token-of-the-radio"
LONG_TEXT = (
    "The train to the city leaves at seven in the morning and stops at every small station on the way. "
    "My sister told me that the garden needs water, and that the letters are on the table in the kitchen."
)


@pytest.fixture
def site(tmp_path):
    """An authority, and a folder with the files of all."""
    authority = Authority()
    authority.write(tmp_path)
    issue(authority, tmp_path)
    (tmp_path / "tokens.toml").write_text(f'[radio]\ntoken = "{OLD}"\n')
    (tmp_path / "logs").mkdir()
    return authority, tmp_path


def issue(authority, folder):
    """Fresh certificates for all; the one of a server is a key pair of its own, as are the gateway's and the caller's."""
    for name in ("server", "gateway", "caller"):
        authority.issue().write(folder, name)


def files_of(folder, name):
    return tls.ClientFiles(folder / "ca.crt", folder / f"{name}.crt", folder / f"{name}.key")


def logs_in(folder):
    return {name: (folder / "logs" / f"{name}.log").read_text() for name in MODULES}


async def csm(folder, *arguments, **environment):
    """(exit code, what was printed)"""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "gateway.cli",
        *map(str, arguments),
        cwd=ROOT,
        env={**os.environ, "CSM_STATE_DIR": str(folder / "state"), **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    printed, _ = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode, printed.decode()


async def test_five_processes_behind_mutual_tls_and_tokens(site):
    authority, folder = site
    settings = {
        "CSM_TLS_CERT_FILE": str(folder / "server.crt"),
        "CSM_TLS_KEY_FILE": str(folder / "server.key"),
        "CSM_TLS_CLIENT_CA_FILE": str(folder / "ca.crt"),
        "CSM_UPSTREAM_CA_FILE": str(folder / "ca.crt"),
        "CSM_UPSTREAM_CERT_FILE": str(folder / "gateway.crt"),
        "CSM_UPSTREAM_KEY_FILE": str(folder / "gateway.key"),
        "CSM_TOKENS_FILE": str(folder / "tokens.toml"),
        "CSM_HEALTH_LISTEN": "127.0.0.1:0",
    }
    caller = tls.channel_credentials(files_of(folder, "caller"))
    async with Processes(folder / "logs", settings, caller) as processes:
        address = processes.addresses["gateway"]
        options = ["--address", address]
        for name, kind in (("ca", "ca.crt"), ("cert", "caller.crt"), ("key", "caller.key")):
            options += [f"--tls-{name}", folder / kind]

        said = csm(folder, "say", "Hello.", "-o", folder / "out.wav", "--max-seconds", "1", *options, CSM_TOKEN=OLD)
        unknown = csm(folder, "voices", *options)
        (code, printed), (refused, why) = await asyncio.gather(said, unknown)
        assert code == (9 if "CUT at its cap" in printed else 0), printed
        with wave.open(str(folder / "out.wav")) as file:
            assert file.getframerate() == 24_000 and file.getnframes() > 0
        assert (refused, why.count("\n")) == (8, 1) and "wants one bearer token" in why

        async with SpeechClient(address, credentials=caller, token=OLD) as client:
            stream = client.stream(LONG_TEXT, seed=3, max_audio_ms=8000)
            audio = aiter(stream)
            heard = len(await anext(audio))
            issue(authority, folder)
            (folder / "tokens.toml").write_text(f'[radio]\ntoken = "{NEW}"\n')
            fresh = tls.channel_credentials(files_of(folder, "caller"))
            async with SpeechClient(address, credentials=fresh, token=NEW) as later:
                assert (await later.synthesize("Hello.", max_audio_ms=400)).summary.frames > 0
            with pytest.raises(exceptions.Unauthenticated):
                await client.voices()
            async for data in audio:
                heard += len(data)
            assert stream.summary.samples * 2 == heard, "a stream that ran through the exchange is whole"
        async with asyncio.timeout(30):  # the gateway asks its stages every second, over connections of now
            while not all("certificates of this server: reloaded" in log for log in logs_in(folder).values()):
                await asyncio.sleep(0.1)

    logs = logs_in(folder)
    assert "certificates for calls: reloaded" in logs["gateway"] and "tokens: reloaded" in logs["gateway"]
    spans = [span for service, span in processes.receiver.spans if service == "csm-gateway"]
    named = [a.value.string_value for span in spans for a in span.attributes if a.key == "csm.token"]
    assert named and set(named) == {"radio"}
    written = "".join(logs.values()) + "".join(map(str, spans))
    assert OLD not in written and NEW not in written and "PRIVATE KEY" not in written
