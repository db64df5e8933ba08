"""`make deploy-test`, the compose part: profile cpu of compose.yaml on this machine, by podman.

    .venv/bin/python deploy/e2e_compose.py [--keep]

The images are those that e2e_pods.py has built. Brings profile cpu up, says a sentence by gRPC and one by HTTP, finds the
mark of both, keeps a named voice over a restart of the gateway, and takes everything down with its volumes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from pods import containers_conf

ROOT = Path(__file__).parents[1]
FILE = ROOT / "deploy/compose.yaml"
READY_S = 300.0
SENTENCE = "These words went through seven containers."
HTTP = "http://127.0.0.1:50055"


def main() -> None:
    parser = argparse.ArgumentParser(description="The profile cpu of deploy/compose.yaml, by podman.")
    parser.add_argument("--keep", action="store_true", help="leave the containers running")
    options = parser.parse_args()
    (ROOT / "out/deploy").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CONTAINERS_CONF"] = str(containers_conf(Path(folder)))
        walk_through(keep=options.keep)


def walk_through(*, keep: bool) -> None:
    try:
        compose("up", "--detach")
        took_s = until(lambda: csm("voices", check=False).returncode == 0, "the gateway serves")
        say("up, and the gateway serves", took_s)
        speak()
        speak_by_http()
        voices_stay()
    except BaseException:
        subprocess.run(compose_command("logs", "--tail", "40"), cwd=ROOT)
        raise
    finally:
        if not keep:
            compose("down", "--volumes", "--timeout", "20")
    say("compose: all of it worked")


def speak() -> None:
    csm("say", SENTENCE, "--seed", "6", "-o", "out/deploy/compose.wav")
    print("    " + csm("verify", "out/deploy/compose.wav").stdout.strip().replace("\n", "\n    "), flush=True)


def speak_by_http() -> None:
    """As clients of OpenAI's API do."""
    until(lambda: get("/health") == 200, "the HTTP face serves")
    body = json.dumps({"model": "csm", "input": SENTENCE, "voice": "heart", "response_format": "wav"}).encode()
    request = urllib.request.Request(f"{HTTP}/v1/audio/speech", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        (ROOT / "out/deploy/compose_http.wav").write_bytes(answer.read())
    csm("verify", "out/deploy/compose_http.wav")
    say("the same by HTTP")


def voices_stay() -> None:
    csm(
        "voices",
        "add",
        "kept",
        "out/deploy/compose.wav",
        "--transcript",
        SENTENCE,
        "--consent",
        "none needed: made here",
    )
    subprocess.run(["podman", "restart", "--time", "20", "csm_gateway_1"], check=True, capture_output=True)
    until(lambda: "kept" in csm("voices", check=False).stdout, "the voice is there again")
    say("a named voice outlives its gateway")


def get(path: str) -> int:
    try:
        with urllib.request.urlopen(HTTP + path, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def csm(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("csm")), *arguments, "--address", "127.0.0.1:50050"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=180, cwd=ROOT, env={**os.environ, "CSM_INSECURE": "plaintext"}
    )
    if check and done.returncode:
        raise RuntimeError(f"csm {arguments[0]} ended with {done.returncode}: {done.stdout}{done.stderr}")
    return done


def compose_command(*arguments: str) -> list[str]:
    return [str(Path(sys.executable).with_name("podman-compose")), "-f", str(FILE), "--profile", "cpu", *arguments]


def compose(*arguments: str) -> None:
    subprocess.run(compose_command(*arguments), check=True, cwd=ROOT)


def until(true: Callable[[], bool], what: str) -> float:
    """Seconds it took. Raises: TimeoutError."""
    begun = time.monotonic()
    while not true():
        if time.monotonic() - begun > READY_S:
            raise TimeoutError(f"waited {READY_S:.0f} s in vain: {what}")
        time.sleep(0.5)
    return time.monotonic() - begun


def say(text: str, took_s: float | None = None) -> None:
    print(text + (f"  [{took_s:.1f} s]" if took_s is not None else ""), flush=True)


if __name__ == "__main__":
    main()
