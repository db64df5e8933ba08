"""Mutations of rendered manifests, each of which some check must find. Weights by a node's folder and an object store; claims."""

from __future__ import annotations

from support.manifest_mutations.mutation import Mutation, drop, model_map, mount, variable, volume
from support.manifests.rendered import SERVICES, Manifest, Manifests, container, deployment, one, pod


def _init(manifests: Manifests, service: str) -> Manifest:
    return pod(deployment(manifests, service))["initContainers"][0]


def _drop_policies(manifests: Manifests) -> None:
    for name in ("weights-to-hub", "weights-to-store"):
        drop(manifests, "NetworkPolicy", name)


# With weights-node, weights-store, voices-store, external-secrets-store.
NODE: dict[str, Mutation] = {
    "one that does not fetch": lambda m: pod(deployment(m, "codec")).pop("initContainers"),
    "one that fetches something else": lambda m: _init(m, "codec")["env"].append(
        {"name": "CSM_MODEL", "value": "embedded"}
    ),
    "all fetch something else than is read": lambda m: [
        _init(m, s)["env"].append({"name": "CSM_MODEL", "value": "/models/0.1.0/embedded"}) for s in SERVICES
    ],
    "releases share a folder": lambda m: model_map(m).update(CSM_MODEL="/models/embedded"),
    "a folder that is not mounted": lambda m: model_map(m).update(CSM_MODEL="/var/0.2.0/embedded"),
    "a model that no image has": lambda m: model_map(m).update(CSM_MODEL="/models/0.2.0/embeded"),
    "a second container before it": lambda m: pod(deployment(m, "codec"))["initContainers"].append(_init(m, "gateway")),
    "privileged": lambda m: _init(m, "codec")["securityContext"].update(allowPrivilegeEscalation=True),
    "no limit of memory before it": lambda m: _init(m, "codec")["resources"]["limits"].clear(),
    "another image": lambda m: [_init(m, s).update(image="csm-codec:0.2.0") for s in ("codec", "backbone")],
    "the service writes": lambda m: mount(m, "codec", "weights").pop("readOnly"),
    "the init container cannot write": lambda m: volume(m, "codec", "weights")["persistentVolumeClaim"].update(
        readOnly=True
    ),
    "no credentials": lambda m: _init(m, "codec")["volumeMounts"].pop(),
    "no such Secret": lambda m: volume(m, "codec", "store")["secret"].update(secretName="csm-stores"),
    "the store's credentials in a stage": lambda m: container(deployment(m, "codec"))["env"].append(
        {"name": "AWS_SECRET_ACCESS_KEY", "valueFrom": {"secretKeyRef": {"name": "csm-store", "key": "credentials"}}}
    ),
    "a folder that kubelet makes": lambda m: one(m, "PersistentVolume", "csm-weights")["spec"]["hostPath"].update(
        type="DirectoryOrCreate"
    ),
    "a folder of another class": lambda m: one(m, "PersistentVolume", "csm-weights")["spec"].update(
        storageClassName="x"
    ),
    "a folder that is too small": lambda m: one(m, "PersistentVolume", "csm-weights")["spec"]["capacity"].update(
        storage="1Gi"
    ),
    "another port of the store": lambda m: one(m, "NetworkPolicy", "gateway-to-store")["spec"]["egress"][0]["ports"][
        0
    ].update(port=9000),
    "no way to the weights": lambda m: _drop_policies(m),
    "a Secret of another key": lambda m: one(m, "ExternalSecret", "csm-store")["spec"]["data"][0].update(
        secretKey="key"
    ),
}

# With gpu-dra.
DRA: dict[str, Mutation] = {
    "a claim of nothing": lambda m: pod(deployment(m, "codec"))["resourceClaims"][0].update(
        resourceClaimTemplateName="x"
    ),
    "a claim that the container has not": lambda m: container(deployment(m, "codec"))["resources"].pop("claims"),
    "two cards": lambda m: one(m, "ResourceClaimTemplate", "csm-card")["spec"]["spec"]["devices"]["requests"][0][
        "exactly"
    ].update(count=2),
    "the device plugin's card as well": lambda m: container(deployment(m, "codec"))["resources"]["limits"].update(
        {"nvidia.com/gpu": "1"}
    ),
    "a claimed card that is not used": lambda m: variable(m, "codec", "CSM_CODEC_DEVICE").update(value="cpu"),
}
