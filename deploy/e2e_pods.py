"""`make deploy-test`: overlay cpu-dev as real pods on this machine.

    .venv/bin/python deploy/e2e_pods.py [--base IMAGE] [--keep] [--no-build]

Builds the images (on a base made of Debian's packages, unless --base names one), renders the overlay with
kubectl, lets podman run its Job and its Deployments, asks their probes, sends a sentence through and verifies
its mark, kills the backbone, sees it come back, speaks again, stops the backbone in the middle of a stream that
is still heard to its end, and takes everything down.

podman runs no gRPC probes: this program does, as the manifest says. What podman does and does not do otherwise:
pods.py. Root, podman and runc are needed.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path

import grpc
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pods import (
    Manifest,
    address_of,
    container,
    containers_conf,
    play_all,
    podman,
    say,
    show_logs,
    show_sizes,
    take_down,
)

ROOT = Path(__file__).parents[1]
OVERLAY = ROOT / "deploy/overlays/cpu-dev"
BASE = "localhost/csm-base:bookworm"
READY_S = 180.0
SENTENCE = "These words went through five pods."
# One generation: a text of several units asks the backbone again for each, and there is no second replica to answer.
STORY = (
    "The old man took his boat out to the wide grey sea on a warm and windy day and sailed past the rocks and the "
    "lighthouse and the long white beach until he saw the first houses of the town."
)
UNAVAILABLE = 5  # what csm ends with when the chain, or a part of it, is away
NEEDED = ("podman", "runc", "buildah", "debootstrap", "catatonit", "iptables")


def main() -> None:
    parser = argparse.ArgumentParser(description="The cpu-dev overlay as real pods, by podman.")
    parser.add_argument("--base", help="image to build on; without it, one is made from Debian's packages")
    parser.add_argument("--no-build", action="store_true", help="the images are here already")
    parser.add_argument("--keep", action="store_true", help="leave the pods running")
    options = parser.parse_args()
    missing = [tool for tool in NEEDED if shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin") is None]
    if missing or os.geteuid():
        sys.exit(
            f"deploy-test runs as root, and needs {', '.join(missing) or 'nothing more'}: apt-get install "
            f"{' '.join(NEEDED)} netavark aardvark-dns"
        )
    (ROOT / "out/deploy").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CONTAINERS_CONF"] = str(containers_conf(Path(folder)))
        if not options.no_build:
            build(options.base)
        manifests = render()
        try:
            say("pods")
            play_all(manifests, Path(folder))
            walk_through(manifests)
        except BaseException:
            show_logs()
            raise
        finally:
            if not options.keep:
                take_down(manifests)
    say("all of it worked")


def walk_through(manifests: list[Manifest]) -> None:
    """A sentence, a death, a return, a sentence."""
    deployments = [manifest for manifest in manifests if manifest["kind"] == "Deployment"]
    for deployment in sorted(deployments, key=lambda d: d["metadata"]["name"] == "csm-gateway"):  # it waits for all
        took_s = until(partial(probes_pass, deployment), f"{deployment['metadata']['name']} is ready")
        say(f"{deployment['metadata']['name']} is ready", took_s)
    speak("first.wav")
    show_sizes()

    backbone = next(d for d in deployments if d["metadata"]["name"] == "csm-backbone")
    before = container(backbone)
    killed = time.monotonic()
    os.kill(before["State"]["Pid"], signal.SIGKILL)
    until(
        lambda: container(backbone)["State"]["Pid"] not in (0, before["State"]["Pid"]), "the backbone is started again"
    )
    took_s = until(lambda: probes_pass(backbone), "the backbone is ready again")
    now = container(backbone)
    assert now["Id"] == before["Id"] and now["RestartCount"] == before["RestartCount"] + 1, now["RestartCount"]
    say(f"backbone killed (process {before['State']['Pid']}), ready again as process {now['State']['Pid']}", took_s)
    # Its channel looks for a stage that was away at most two seconds apart: till then callers get UNAVAILABLE.
    command = csm("say", SENTENCE, "-o", "out/deploy/return.wav")
    until(
        lambda: subprocess.run(command, capture_output=True, cwd=ROOT, env=in_plaintext()).returncode != UNAVAILABLE,
        "a sentence is heard",
    )
    say("and from the kill to a sentence that goes through", time.monotonic() - killed)
    speak("second.wav")
    leave_in_the_middle(backbone)


def leave_in_the_middle(backbone: Manifest) -> None:
    """A stream that runs while its backbone gets SIGTERM is heard to its end. Last: podman does not start it again."""
    # Looked up before: podman takes a good part of a second to say it, and the backbone two or three to make the story.
    page, name = f"http://{address_of('csm-backbone')}:9464/metrics", container(backbone)["Name"]
    with subprocess.Popen(
        csm("say", STORY, "--seed", "3", "-o", "out/deploy/story.wav"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env=in_plaintext(),
    ) as caller:

        def has_come() -> bool:
            if caller.poll() is not None:
                raise RuntimeError(f"csm say ended before its request was seen: {caller.communicate()[0]}")
            return metric(page, "csm_backbone_slots_active") == 1

        until(has_come, "the backbone has the request", every_s=0.02)
        begun = time.monotonic()
        podman("stop", "--time", "120", name)
        took_s = time.monotonic() - begun
        said, _ = caller.communicate(timeout=60)
    print("    " + said.strip().replace("\n", "\n    "), flush=True)
    state = container(backbone)["State"]
    if caller.returncode not in (0, 9) or state["ExitCode"]:
        raise RuntimeError(f"csm say ended with {caller.returncode}, the backbone with {state['ExitCode']}")
    say("backbone stopped in the middle of it: the stream came to its end, then the backbone to its own", took_s)


def metric(url: str, name: str) -> float:
    """One gauge of a page, as Prometheus would fetch it."""
    with urllib.request.urlopen(url, timeout=5) as page:
        (value,) = re.findall(rf"^{name}(?:{{.*}})? (\S+)$", page.read().decode(), re.MULTILINE)
    return float(value)


def speak(name: str) -> None:
    """A sentence through the gateway, and its mark found by it."""
    out = f"out/deploy/{name}"
    for command in (csm("say", SENTENCE, "--seed", "6", "-o", out), csm("verify", out)):
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT, env=in_plaintext())
        print("    " + (done.stdout + done.stderr).strip().replace("\n", "\n    "), flush=True)
        done.check_returncode()


def csm(*arguments: str) -> list[str]:
    return [str(Path(sys.executable).with_name("csm")), *arguments, "--address", f"{address_of('csm-gateway')}:50050"]


def in_plaintext() -> dict[str, str]:
    return {**os.environ, "CSM_INSECURE": "plaintext"}


def build(base: str | None) -> None:
    begun = time.monotonic()
    log = ROOT / "out/deploy/build.log"
    if base is None:
        subprocess.run([ROOT / "deploy/images/debian_base.sh", BASE], check=True)
        say(f"base image {BASE}", time.monotonic() - begun)
    with log.open("w") as file:
        # No card here: no compiler for Triton's launcher.
        argv = [sys.executable, str(ROOT / "deploy/images/build.py"), "--base", base or BASE, "--arg", "COMPILER="]
        if subprocess.run(argv, stdout=file, stderr=subprocess.STDOUT).returncode:
            sys.exit(f"the images cannot be built; the end of {log}:\n" + "".join(log.read_text()[-3000:]))
    say(f"images built ({log})", time.monotonic() - begun)


def render(overlay: Path = OVERLAY) -> list[Manifest]:
    kubectl = Path(sys.executable).with_name("kubectl")
    text = subprocess.run([kubectl, "kustomize", overlay], capture_output=True, text=True, check=True).stdout
    return list(yaml.safe_load_all(text))


def probes_pass(deployment: Manifest) -> bool:
    """What kubelet would find: the startup, liveness and readiness probes of the manifest, asked at the pod's address."""
    (spec,) = deployment["spec"]["template"]["spec"]["containers"]
    for name in ("startupProbe", "livenessProbe", "readinessProbe"):
        probe = spec[name]["grpc"]
        address = address_of(deployment["metadata"]["name"])
        with grpc.insecure_channel(f"{address}:{probe['port']}") as channel:
            request = health_pb2.HealthCheckRequest(service=probe["service"])
            try:
                answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=spec[name]["timeoutSeconds"])
            except grpc.RpcError:
                return False
            if answer.status != health_pb2.HealthCheckResponse.SERVING:
                return False
    return True


def until(true: Callable[[], bool], what: str, every_s: float = 0.2) -> float:
    """Seconds it took. Raises: TimeoutError."""
    begun = time.monotonic()
    while not true():
        if time.monotonic() - begun > READY_S:
            raise TimeoutError(f"waited {READY_S:.0f} s in vain: {what}")
        time.sleep(every_s)
    return time.monotonic() - begun


if __name__ == "__main__":
    main()
