"""Edits of rendered manifests that the mutations beside are made of."""

from __future__ import annotations

from collections.abc import Callable

from support.manifests.rendered import Manifest, Manifests, container, deployment, one, pod

Mutation = Callable[[Manifests], object]


def settings_name(manifests: Manifests) -> str:
    return container(deployment(manifests, "gateway"))["envFrom"][0]["configMapRef"]["name"]


def settings_map(manifests: Manifests) -> dict[str, str]:
    return one(manifests, "ConfigMap", settings_name(manifests))["data"]


def model_map(manifests: Manifests) -> dict[str, str]:
    """The ConfigMap that names the model."""
    return one(
        manifests, "ConfigMap", container(deployment(manifests, "gateway"))["envFrom"][1]["configMapRef"]["name"]
    )["data"]


def variable(manifests: Manifests, service: str, name: str) -> Manifest:
    (entry,) = (e for e in container(deployment(manifests, service))["env"] if e["name"] == name)
    return entry


def volume(manifests: Manifests, service: str, name: str) -> Manifest:
    (found,) = (volume for volume in pod(deployment(manifests, service))["volumes"] if volume["name"] == name)
    return found


def mount(manifests: Manifests, service: str, name: str) -> Manifest:
    (found,) = (m for m in container(deployment(manifests, service))["volumeMounts"] if m["name"] == name)
    return found


def limits(manifests: Manifests, service: str) -> dict[str, str]:
    return container(deployment(manifests, service))["resources"]["limits"]


def policy(manifests: Manifests, name: str) -> Manifest:
    return one(manifests, "NetworkPolicy", name)["spec"]


def drop(manifests: Manifests, kind: str, name: str) -> None:
    manifests.remove(one(manifests, kind, name))


def scaled(manifests: Manifests) -> Manifest:
    return one(manifests, "ScaledObject", "csm-backbone")["spec"]


def scaler(manifests: Manifests) -> Manifest:
    return one(manifests, "HorizontalPodAutoscaler", "csm-backbone")["spec"]


def probe(manifests: Manifests, service: str, name: str) -> Manifest:
    return container(deployment(manifests, service))[f"{name}Probe"]


def rollout(manifests: Manifests, service: str) -> Manifest:
    return deployment(manifests, service)["spec"]["strategy"]["rollingUpdate"]


def node_terms(manifests: Manifests, service: str) -> list[Manifest]:
    affinity = pod(deployment(manifests, service))["affinity"]["nodeAffinity"]
    return affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]


def service(manifests: Manifests, name: str) -> Manifest:
    return one(manifests, "Service", f"csm-{name}")["spec"]


def give_secret(manifests: Manifests, service: str, secret: str) -> None:
    """Mount it in that service's pods."""
    manifest = deployment(manifests, service)
    pod(manifest)["volumes"].append({"name": "more", "secret": {"secretName": secret}})
    container(manifest)["volumeMounts"].append({"name": "more", "mountPath": "/more", "readOnly": True})
