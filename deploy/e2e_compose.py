"""`make deploy-test`, the compose part: profile cpu of compose.yaml on this machine, by podman.

    .venv/bin/python deploy/e2e_compose.py [--keep]

The images are those that e2e_pods.py has built. Brings profile cpu up, says a sentence by gRPC and one by HTTP, finds the
mark of both, keeps a named voice over a restart of the gateway, and takes everything down with its volumes. Of profile
observe it runs Prometheus, Debian's under the name of the image that the profile has, where there is one: it must find all
services by their names and load the alerts.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from pods import containers_conf

ROOT = Path(__file__).parents[1]
FILE = ROOT / "deploy/compose.yaml"
READY_S = 300.0
SENTENCE = "These words went through seven containers."
HTTP = "http://127.0.0.1:50055"
SERVICES = {f"csm-{name}" for name in ("gateway", "http", "tokenizer", "backbone", "codec", "watermark")}


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
        prometheus_finds_all()
    except BaseException:
        subprocess.run(compose_command("logs", "--tail", "40"), cwd=ROOT)
        raise
    finally:
        if not keep:
            subprocess.run(compose_command("down", "--volumes", "--timeout", "20", observe=True), check=True, cwd=ROOT)
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


def prometheus_finds_all() -> None:
    """Profile observe's Prometheus beside profile cpu, with the files and the names that it has there."""
    binary = shutil.which("prometheus")
    if binary is None:
        say("no Prometheus on this machine (Debian: apt-get install prometheus): profile observe is left out")
        return
    definition = yaml.safe_load(FILE.read_text())["services"]["prometheus"]
    stand_in(definition["image"], Path(binary))
    subprocess.run(compose_command("up", "--detach", "prometheus", observe=True), check=True, cwd=ROOT)
    until(lambda: targets_up() == SERVICES, "Prometheus reaches every service")
    groups = ask("rules")["groups"]
    if not groups or any(rule["health"] == "err" for group in groups for rule in group["rules"]):
        raise RuntimeError(f"the alerts are not loaded: {groups}")
    say(f"Prometheus asks all of {', '.join(sorted(SERVICES))}, and has {sum(len(g['rules']) for g in groups)} alerts")


def stand_in(image: str, binary: Path) -> None:
    """An image of that name with this machine's Prometheus: no registry is reached."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(binary, Path(folder) / "prometheus")
        (Path(folder) / "Dockerfile").write_text(
            "FROM localhost/csm-base:bookworm\nCOPY prometheus /bin/prometheus\nUSER 65534:65534\n"
            'ENTRYPOINT ["/bin/prometheus", "--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/tmp/tsdb"]\n'
        )
        subprocess.run(["buildah", "bud", "--tag", image, folder], check=True, capture_output=True)


def targets_up() -> set[str]:
    try:
        return {t["labels"]["job"] for t in ask("targets")["activeTargets"] if t["health"] == "up"}
    except OSError:
        return set()


def ask(what: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://127.0.0.1:9090/api/v1/{what}", timeout=5) as answer:
        found: dict[str, Any] = json.load(answer)["data"]
    return found


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


def compose_command(*arguments: str, observe: bool = False) -> list[str]:
    profiles = ["--profile", "cpu", *(["--profile", "observe"] if observe else [])]
    return [str(Path(sys.executable).with_name("podman-compose")), "-f", str(FILE), *profiles, *arguments]


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
