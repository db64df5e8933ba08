"""A rendered overlay in podman: what podman 4 plays of it, the rest by hand, and all of it taken down again.

What podman plays: images, commands, environment, ConfigMaps, Secrets, volumes, users, the read-only root,
capabilities, memory limits, restarts. What it leaves out and is done here: Jobs (their pod is played by
itself) and Services (network aliases with their names). Done by neither: NetworkPolicies, disruption
budgets, spread, preStop.
"""

from __future__ import annotations

import base64
import copy
import json
import resource
import subprocess
import time
from pathlib import Path
from typing import Any

import yaml

NETWORK = "csm-deploy-test"
PLAYED = ("ConfigMap", "Secret", "PersistentVolumeClaim", "Deployment")  # the kinds that podman knows


Manifest = dict[str, Any]


def play_all(manifests: list[Manifest], folder: Path) -> None:
    """Volume, secret and settings; the Job to its end; then every Deployment under the name of its Service."""
    podman("network", "create", NETWORK)
    shared = [manifest for manifest in manifests if manifest["kind"] in PLAYED and manifest["kind"] != "Deployment"]
    job = next(manifest for manifest in manifests if manifest["kind"] == "Job")
    name = job["metadata"]["name"]
    # podman knows no Job: its pod is played by itself, once.
    pod: Manifest = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, **job["spec"]["template"]["metadata"]},
    }
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
    pods = [f"{m['metadata']['name']}-pod-0" for m in manifests if m["kind"] == "Deployment"]
    pods += [m["metadata"]["name"] for m in manifests if m["kind"] == "Job"]
    # Each by itself: of several, one that is not there would keep the others.
    stopping = [
        subprocess.Popen(
            ["podman", "pod", "stop", "--ignore", "--time", "30", pod],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for pod in pods
    ]
    for process in stopping:
        process.wait()
    for pod in pods:
        quietly("pod", "rm", "--force", pod)
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


def container(deployment: Manifest) -> dict[str, Any]:
    (spec,) = deployment["spec"]["template"]["spec"]["containers"]
    (found,) = json.loads(podman("inspect", f"{deployment['metadata']['name']}-pod-0-{spec['name']}"))
    return found


def address_of(deployment: str) -> str:
    """The pod's address, which podman keeps with the container that holds the pod's network."""
    (pod,) = [json.loads(podman("pod", "inspect", f"{deployment}-pod-0"))]
    (infra,) = json.loads(podman("inspect", pod["InfraContainerID"]))
    return infra["NetworkSettings"]["Networks"][NETWORK]["IPAddress"]


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
