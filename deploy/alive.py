"""`make deploy-test`: overlay cpu-dev as real pods on this machine.

    .venv/bin/python deploy/alive.py [--base IMAGE] [--keep] [--no-build]

Builds the images (on a base made of Debian's packages, unless --base names one), renders the overlay with
kubectl, lets podman run its Job and its Deployments, asks their probes, sends a sentence through and verifies
its mark, kills the backbone, sees it come back, speaks again, stops the backbone in the middle of a stream that
is still heard to its end, and takes everything down.

What podman plays of a manifest: images, commands, environment, ConfigMaps, Secrets, volumes, users, the
read-only root, capabilities, memory limits, restarts. What it leaves out, and this file does in its stead:
Services (network aliases with their names) and gRPC probes (asked from here, as the manifest says). What
nobody does here: NetworkPolicies, disruption budgets, spread, preStop. Root, podman and runc are needed.
"""

from __future__ import annotations

import argparse
import base64
import copy
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc

ROOT = Path(__file__).parents[1]
OVERLAY = ROOT / "deploy/overlays/cpu-dev"
BASE = "localhost/csm-base:bookworm"
NETWORK = "csm-deploy-test"
PLAYED = ("ConfigMap", "Secret", "PersistentVolumeClaim", "Deployment")  # the kinds that podman knows
READY_S = 180.0
SENTENCE = "These words went through five pods."
STORY = " ".join(["The old man took his boat out to the sea, and the wind was warm that day."] * 4)
NEEDED = ("podman", "runc", "buildah", "debootstrap")

Manifest = dict[str, Any]


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
        took_s = until(lambda d=deployment: probes_pass(d), f"{deployment['metadata']['name']} is ready")
        say(f"{deployment['metadata']['name']} is ready", took_s)
    speak("first.wav")
    show_sizes()

    backbone = next(d for d in deployments if d["metadata"]["name"] == "csm-backbone")
    before = container(backbone)
    os.kill(before["State"]["Pid"], signal.SIGKILL)
    until(lambda: container(backbone)["State"]["Pid"] not in (0, before["State"]["Pid"]), "the backbone is started again")
    took_s = until(lambda: probes_pass(backbone), "the backbone is ready again")
    now = container(backbone)
    assert now["Id"] == before["Id"] and now["RestartCount"] == before["RestartCount"] + 1, now["RestartCount"]
    say(f"backbone killed (process {before['State']['Pid']}), ready again as process {now['State']['Pid']}", took_s)
    gateway = next(d for d in deployments if d["metadata"]["name"] == "csm-gateway")
    until(lambda: probes_pass(gateway), "the gateway is ready again")
    speak("second.wav")
    leave_in_the_middle(backbone)


def leave_in_the_middle(backbone: Manifest) -> None:
    """A stream that runs while its backbone is told to leave is heard to its end. Last: podman starts it no more."""
    with subprocess.Popen(csm("say", STORY, "--seed", "3", "-o", "out/deploy/story.wav"), stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, cwd=ROOT, env=in_plaintext()) as caller:
        until(lambda: metric("csm-backbone", "csm_backbone_slots_active") == 1, "the backbone has the request")
        begun = time.monotonic()
        podman("stop", "--time", "120", container(backbone)["Name"])
        took_s = time.monotonic() - begun
        said, _ = caller.communicate(timeout=60)
    print("    " + said.strip().replace("\n", "\n    "), flush=True)
    state = container(backbone)["State"]
    if caller.returncode or state["ExitCode"]:
        raise RuntimeError(f"csm say ended with {caller.returncode}, the backbone with {state['ExitCode']}")
    say("backbone stopped in the middle of it: the stream came to its end, then the backbone to its own", took_s)


def metric(deployment: str, name: str) -> float:
    """One gauge, as Prometheus would fetch it."""
    with urllib.request.urlopen(f"http://{address_of(deployment)}:9464/metrics", timeout=5) as page:
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
        argv = [sys.executable, ROOT / "deploy/images/build.py", "--base", base or BASE, "--arg", "COMPILER="]
        if subprocess.run(argv, stdout=file, stderr=subprocess.STDOUT).returncode:
            sys.exit(f"the images cannot be built; the end of {log}:\n" + "".join(log.read_text()[-3000:]))
    say(f"images built ({log})", time.monotonic() - begun)


def render() -> list[Manifest]:
    kubectl = Path(sys.executable).with_name("kubectl")
    text = subprocess.run([kubectl, "kustomize", OVERLAY], capture_output=True, text=True, check=True).stdout
    return list(yaml.safe_load_all(text))


def play_all(manifests: list[Manifest], folder: Path) -> None:
    """Volume, secret and settings; the Job to its end; then every Deployment under the name of its Service."""
    podman("network", "create", NETWORK)
    shared = [manifest for manifest in manifests if manifest["kind"] in PLAYED and manifest["kind"] != "Deployment"]
    job = next(manifest for manifest in manifests if manifest["kind"] == "Job")
    name = job["metadata"]["name"]
    # podman knows no Job: its pod is played by itself, once.
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, **job["spec"]["template"]["metadata"]}}
    pod["spec"] = {**job["spec"]["template"]["spec"], "restartPolicy": "Never"}
    begun = time.monotonic()
    play([*shared, pod], folder / "job.yaml", NETWORK)
    ended = f"{name}-{pod['spec']['containers'][0]['name']}"
    code = podman("wait", ended).strip()
    say(podman("logs", ended).strip(), time.monotonic() - begun)
    if code != "0":
        raise RuntimeError(f"the Job {name} ended with {code}")
    settings = [manifest for manifest in manifests if manifest["kind"] == "ConfigMap"]
    for deployment in (manifest for manifest in manifests if manifest["kind"] == "Deployment"):
        service = deployment["metadata"]["name"]
        play([*settings, deployment], folder / f"{service}.yaml", f"{NETWORK}:alias={service}", "--start=false")
        for volume in deployment["spec"]["template"]["spec"]["volumes"]:
            if "secret" in volume:
                fill(next(m for m in manifests if m["metadata"]["name"] == volume["secret"]["secretName"]))
        podman("pod", "start", f"{service}-pod-0")


def fill(secret: Manifest) -> None:
    """The files of a Secret, decoded: podman 4 leaves them in base64."""
    folder = Path(podman("volume", "inspect", "--format", "{{.Mountpoint}}", secret["metadata"]["name"]).strip())
    for key, value in secret["data"].items():
        (folder / key).write_bytes(base64.b64decode(value))


def play(manifests: list[Manifest], path: Path, network: str, *options: str) -> None:
    copies = copy.deepcopy(manifests)
    for manifest in copies:
        if manifest["kind"] == "Deployment":
            # podman 4 publishes every containerPort on this machine, where five metrics ports are one,
            # and crashes on a secret's volume that does not say whether it is optional.
            for spec in manifest["spec"]["template"]["spec"]["containers"]:
                spec.pop("ports", None)
            for volume in manifest["spec"]["template"]["spec"]["volumes"]:
                if "secret" in volume:
                    volume["secret"].setdefault("optional", False)
    path.write_text(yaml.safe_dump_all(copies))
    podman("kube", "play", "--network", network, *options, str(path))


def take_down(manifests: list[Manifest]) -> None:
    """Only what this run made, by name."""
    begun = time.monotonic()
    for manifest in manifests:
        name = manifest["metadata"]["name"]
        match manifest["kind"]:
            case "Deployment":
                quietly("pod", "stop", "--time", "30", f"{name}-pod-0")
                quietly("pod", "rm", "--force", f"{name}-pod-0")
            case "Job":
                quietly("pod", "rm", "--force", name)
    for manifest in manifests:
        name = manifest["metadata"]["name"]
        match manifest["kind"]:
            case "PersistentVolumeClaim":
                quietly("volume", "rm", "--force", name)
            case "Secret":
                quietly("secret", "rm", name)
                quietly("volume", "rm", "--force", name)
    quietly("network", "rm", "--force", NETWORK)
    left = [name for name in podman("pod", "ls", "--format", "{{.Name}}").split() if name.startswith("csm-")]
    left += [name for name in podman("volume", "ls", "--quiet").split() if name.startswith("csm-")]
    if left:
        raise RuntimeError(f"still there: {', '.join(left)}")
    say("taken down, nothing left", time.monotonic() - begun)


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


def container(deployment: Manifest) -> dict[str, Any]:
    (spec,) = deployment["spec"]["template"]["spec"]["containers"]
    (found,) = json.loads(podman("inspect", f"{deployment['metadata']['name']}-pod-0-{spec['name']}"))
    return found


def address_of(deployment: str) -> str:
    """The pod's address, which podman keeps with the container that holds the pod's network."""
    (pod,) = [json.loads(podman("pod", "inspect", f"{deployment}-pod-0"))]
    (infra,) = json.loads(podman("inspect", pod["InfraContainerID"]))
    return infra["NetworkSettings"]["Networks"][NETWORK]["IPAddress"]


def until(true: Callable[[], bool], what: str) -> float:
    """Seconds it took. Raises: TimeoutError."""
    begun = time.monotonic()
    while not true():
        if time.monotonic() - begun > READY_S:
            raise TimeoutError(f"waited {READY_S:.0f} s in vain: {what}")
        time.sleep(0.2)
    return time.monotonic() - begun


def show_sizes() -> None:
    for line in podman("stats", "--no-stream", "--format", "{{.Name}} {{.MemUsage}}").splitlines():
        if not line.split()[0].endswith("-infra"):
            print(f"    {line}", flush=True)


def show_logs() -> None:
    for name in quietly("ps", "--all", "--format", "{{.Names}}").split():
        if name.startswith("csm-") and "infra" not in name:
            print(f"--- {name}\n{quietly('logs', '--tail', '20', name)}", flush=True)


def containers_conf(folder: Path) -> Path:
    """Limits that this machine can give. podman 4 takes soft for hard: both are the same here."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    files = 4096 if hard == resource.RLIM_INFINITY else min(hard, 4096)
    path = folder / "containers.conf"
    path.write_text(
        f'[containers]\ndefault_ulimits = ["nofile={files}:{files}", "nproc=4096:4096"]\n'
        '[engine]\nruntime = "runc"\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
    )
    return path


def podman(*arguments: str) -> str:
    """What it prints. Raises: RuntimeError with what it says when it fails."""
    done = subprocess.run(["podman", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"podman {' '.join(arguments)}: {done.stdout}{done.stderr}")
    return done.stdout


def quietly(*arguments: str) -> str:
    done = subprocess.run(["podman", *arguments], capture_output=True, text=True)
    return done.stdout + done.stderr


def say(what: str, took_s: float | None = None) -> None:
    print(what if took_s is None else f"{what}  [{took_s:.1f} s]", flush=True)


if __name__ == "__main__":
    main()
