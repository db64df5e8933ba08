"""The Kubernetes manifests as kubectl renders them, and how to find one's way in them and to the code."""

from __future__ import annotations

import copy
import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from gateway.config import GatewaySettings
from services.backbone.config import BackboneSettings
from services.codec.config import CodecSettings
from services.runtime.settings import read
from services.tokenizer.config import TokenizerSettings
from services.watermark.config import WatermarkSettings

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"
SERVICES = ("gateway", "tokenizer", "backbone", "codec", "watermark")
STAGES = SERVICES[1:]

SETTINGS = {  # by service, what reads the environment of its container
    "gateway": GatewaySettings,
    "tokenizer": TokenizerSettings,
    "backbone": BackboneSettings,
    "codec": CodecSettings,
    "watermark": WatermarkSettings,
}

Manifest = dict[str, Any]
Manifests = list[Manifest]


@functools.cache
def _rendered(overlay: str, components: tuple[str, ...], more: str) -> Manifests:
    kubectl = Path(sys.executable).with_name("kubectl")
    with tempfile.TemporaryDirectory() as folder:
        # As a place of one's own would: an overlay on top. kustomize takes relative paths alone.
        def path(name: str) -> str:
            return os.path.relpath(DEPLOY / name, Path(folder).resolve())

        top = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": [path(overlay)],
            "components": [path(f"components/{name}") for name in components],
        } | yaml.safe_load(more)
        (Path(folder) / "kustomization.yaml").write_text(yaml.safe_dump(top))
        done = subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True)
    if done.returncode or "Warning" in done.stderr:
        raise AssertionError(f"{overlay} with {components}: {done.stderr}")
    # The C loader where there is one: the other takes longer than all else here.
    return list(yaml.load_all(done.stdout, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


def render(overlay: str, components: tuple[str, ...] = (), more: str = "{}") -> Manifests:
    """What `kubectl apply -k` would send, fresh to change.

    overlay: a folder below deploy/. more: what else stands in the kustomization.yaml on top of it, YAML.
    """
    return copy.deepcopy(_rendered(overlay, tuple(components), more))


def of_kind(manifests: Manifests, kind: str) -> Manifests:
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def one(manifests: Manifests, kind: str, name: str) -> Manifest:
    (found,) = (m for m in manifests if m["kind"] == kind and m["metadata"]["name"] == name)
    return found


def deployment(manifests: Manifests, service: str) -> Manifest:
    return one(manifests, "Deployment", f"csm-{service}")


def pod(manifest: Manifest) -> Manifest:
    """The pod's spec of a Deployment or Job."""
    return manifest["spec"]["template"]["spec"]


def container(manifest: Manifest) -> Manifest:
    (found,) = pod(manifest)["containers"]
    return found


def containers(manifest: Manifest) -> list[Manifest]:
    """Its container, and those that run before it."""
    return [*pod(manifest).get("initContainers", []), container(manifest)]


def fetching(manifests: Manifests) -> list[tuple[Manifest, Manifest]]:
    """Who fetches weights, as (Job or Deployment, the container that does): the Job, or every service before it starts."""
    return [(m, c) for m in pods(manifests) for c in containers(m) if c["name"] == "weights"]


def pods(manifests: Manifests) -> Manifests:
    """Everything that runs pods."""
    return of_kind(manifests, "Deployment") + of_kind(manifests, "Job")


def environ(manifests: Manifests, manifest: Manifest) -> dict[str, str]:
    """The environment of its container: ConfigMaps first, then its own. Values from elsewhere read `(from …)`."""
    return environ_of(manifests, container(manifest))


def environ_of(manifests: Manifests, spec: Manifest) -> dict[str, str]:
    """The same of any container."""
    values: dict[str, str] = {}
    for source in spec.get("envFrom", []):
        values |= one(manifests, "ConfigMap", source["configMapRef"]["name"])["data"]
    for entry in spec.get("env", []):
        values[entry["name"]] = entry["value"] if "value" in entry else f"(from {sorted(entry['valueFrom'])[0]})"
    return values


def labels(manifest: Manifest) -> dict[str, str]:
    """The labels of its pods."""
    return manifest["spec"]["template"]["metadata"]["labels"]


def matches(selector: Manifest, have: dict[str, str]) -> bool:
    """A LabelSelector, as Kubernetes reads it; an empty one takes everything."""
    for key, value in selector.get("matchLabels", {}).items():
        if have.get(key) != value:
            return False
    for rule in selector.get("matchExpressions", []):
        if rule["operator"] != "In":
            raise NotImplementedError(rule["operator"])
        if have.get(rule["key"]) not in rule["values"]:
            return False
    return True


def selected(manifests: Manifests, selector: Manifest) -> list[str]:
    """Names of what runs pods that the selector takes."""
    return [m["metadata"]["name"] for m in pods(manifests) if matches(selector, labels(m))]


def settings_of(manifests: Manifests, service: str):
    """The service's settings as its own code reads them from the manifest."""
    values = environ(manifests, deployment(manifests, service))
    return read(SETTINGS[service], {name: value for name, value in values.items() if name.startswith("CSM_")})


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


def grpc_port(service: str) -> int:
    """The service's port by its own code."""
    return port_of(SETTINGS[service]().listen)
