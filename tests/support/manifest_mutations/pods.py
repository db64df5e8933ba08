"""Mutations of rendered manifests, each of which some check must find. What runs: probes, cards, rights, images."""

from __future__ import annotations

from support.manifest_mutations.mutation import (
    Mutation,
    drop,
    limits,
    mount,
    node_terms,
    probe,
    rollout,
    variable,
    volume,
)
from support.manifests.rendered import container, deployment, one, pod

PODS: dict[str, Mutation] = {
    "budget of another": lambda m: one(m, "PodDisruptionBudget", "csm-codec")["spec"]["selector"]["matchLabels"].update(
        {"app.kubernetes.io/component": "backbone"}
    ),
    "no budget": lambda m: drop(m, "PodDisruptionBudget", "csm-gateway"),
    "spread of another": lambda m: pod(deployment(m, "codec"))["topologySpreadConstraints"][0]["labelSelector"][
        "matchLabels"
    ].update({"app.kubernetes.io/component": "backbone"}),
    "probe of the wrong port": lambda m: container(deployment(m, "codec"))["livenessProbe"]["grpc"].update(port=50053),
    "liveness by readiness": lambda m: container(deployment(m, "codec"))["livenessProbe"]["grpc"].update(
        service="readiness"
    ),
    "no probe": lambda m: container(deployment(m, "codec")).pop("startupProbe"),
    "no preStop": lambda m: container(deployment(m, "gateway")).pop("lifecycle"),
    "no card": lambda m: limits(m, "backbone").pop("nvidia.com/gpu"),
    "a card for the gateway": lambda m: limits(m, "gateway").update({"nvidia.com/gpu": "1"}),
    "no toleration": lambda m: pod(deployment(m, "backbone")).pop("tolerations"),
    "any node": lambda m: pod(deployment(m, "backbone")).pop("affinity"),
    "card but not used": lambda m: variable(m, "codec", "CSM_CODEC_DEVICE").update(value="cpu"),
    "shared memory of its own": lambda m: container(deployment(m, "backbone"))["volumeMounts"].append(
        {"name": "tmp", "mountPath": "/dev/shm"}
    ),
    "root": lambda m: pod(deployment(m, "codec"))["securityContext"].update(runAsUser=0),
    "writable root": lambda m: container(deployment(m, "codec"))["securityContext"].update(
        readOnlyRootFilesystem=False
    ),
    "capabilities": lambda m: container(one(m, "Job", "csm-weights"))["securityContext"].pop("capabilities"),
    "token of the API": lambda m: one(m, "ServiceAccount", "csm-codec").update(automountServiceAccountToken=True),
    "the namespace's own account": lambda m: pod(deployment(m, "codec")).update(serviceAccountName="default"),
    "weights can be written": lambda m: mount(m, "codec", "weights").pop("readOnly"),
    "certificates that are never renewed": lambda m: mount(m, "codec", "tls").update(subPath="tls.crt"),
    "folder of the node": lambda m: volume(m, "codec", "tmp").update(hostPath={"path": "/tmp"}),
    "no limit of memory": lambda m: limits(m, "watermark").pop("memory"),
    "anything in the namespace": lambda m: one(m, "Namespace", "csm")["metadata"]["labels"].clear(),
    "another's image": lambda m: container(deployment(m, "codec")).update(image="csm-backbone:0.1.0"),
    "latest": lambda m: container(deployment(m, "codec")).update(image="csm-codec:latest"),
    "another command": lambda m: container(deployment(m, "codec")).update(command=["python", "-m", "services.codecs"]),
    "startup that may fail once": lambda m: probe(m, "backbone", "startup").update(failureThreshold=1),
    "startup that is asked too fast": lambda m: probe(m, "codec", "startup").update(
        periodSeconds=1, failureThreshold=60
    ),
    "liveness that may fail once": lambda m: probe(m, "codec", "liveness").update(failureThreshold=1),
    "liveness that waits a second": lambda m: probe(m, "codec", "liveness").update(timeoutSeconds=1),
    "liveness that is never off": lambda m: probe(m, "codec", "liveness").update(failureThreshold=1000),
    "readiness after a minute": lambda m: probe(m, "gateway", "readiness").update(failureThreshold=12),
    "readiness that may fail once": lambda m: probe(m, "gateway", "readiness").update(failureThreshold=1),
    "probes that wait": lambda m: probe(m, "gateway", "readiness").update(initialDelaySeconds=600),
    "a new pod waits for the old one's card": lambda m: rollout(m, "backbone").update(maxSurge=1, maxUnavailable=0),
    "all at once": lambda m: rollout(m, "gateway").update(maxUnavailable="100%"),
    "one fewer than there should be": lambda m: rollout(m, "gateway").update(maxUnavailable=1),
    "recreate": lambda m: deployment(m, "gateway")["spec"].update(strategy={"type": "Recreate"}),
    "a pod that is not ready keeps its node": lambda m: one(m, "PodDisruptionBudget", "csm-codec")["spec"].pop(
        "unhealthyPodEvictionPolicy"
    ),
    "nodes without a card": lambda m: node_terms(m, "backbone")[0]["matchExpressions"][0].update(operator="NotIn"),
    "or any other node": lambda m: node_terms(m, "backbone").append(
        {"matchExpressions": [{"key": "kubernetes.io/os", "operator": "In", "values": ["linux"]}]}
    ),
    "preferred nodes": lambda m: pod(deployment(m, "backbone")).update(
        affinity={
            "nodeAffinity": {
                "preferredDuringSchedulingIgnoredDuringExecution": [
                    {"weight": 1, "preference": node_terms(m, "backbone")[0]}
                ]
            }
        }
    ),
    "toleration of another effect": lambda m: pod(deployment(m, "backbone"))["tolerations"][0].update(
        effect="NoExecute"
    ),
    "toleration of everything": lambda m: pod(deployment(m, "backbone"))["tolerations"].append({"operator": "Exists"}),
    "toleration in the collector": lambda m: pod(one(m, "Deployment", "csm-collector")).update(
        tolerations=[{"operator": "Exists"}]
    ),
    "init container": lambda m: pod(deployment(m, "codec")).update(
        initContainers=[{"name": "first", "image": "busybox:1", "securityContext": {"privileged": True}}]
    ),
    "no /tmp": lambda m: container(deployment(m, "codec"))["volumeMounts"].remove(mount(m, "codec", "tmp")),
    "no end to /tmp": lambda m: volume(m, "codec", "tmp")["emptyDir"].clear(),
    "asks for more than it may have": lambda m: container(deployment(m, "codec"))["resources"]["requests"].update(
        memory="32Gi"
    ),
    "asks for no CPU": lambda m: container(deployment(m, "codec"))["resources"]["requests"].pop("cpu"),
    "port of the node": lambda m: container(deployment(m, "codec"))["ports"][0].update(hostPort=50053),
    "token of the API as a volume": lambda m: volume(m, "codec", "tmp").update(
        projected={"sources": [{"serviceAccountToken": {"path": "token"}}]}
    ),
}
