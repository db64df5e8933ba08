"""What runs, pod by pod: its probes, its place, its rights, how one takes over from another. For checks.py."""

from __future__ import annotations

import re

from support.manifests.rendered import (
    SERVICES,
    STAGES,
    Manifest,
    Manifests,
    container,
    containers,
    deployment,
    one,
    pod,
    pods,
    port_of,
    settings_of,
)

# A stage is ready once its model is loaded: 6 GB of CSM-1B from a network's volume, or the bundled model.
STARTUP_S = {"backbone": 600} | dict.fromkeys(("gateway", "tokenizer", "codec", "watermark"), 120)
# The Job writes the weights, gateways the voices.
WRITERS = {("csm-weights", "weights"), ("csm-gateway", "voices")}
_UNITS = {"": 1, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def quantity(text: str | int) -> float:
    """Kubernetes' numbers, such as 500m or 2Gi."""
    match = re.fullmatch(r"([\d.]+)([A-Za-z]*)", str(text))
    assert match, f"{text} is no quantity"
    number, unit = match.groups()
    return float(number) * _UNITS[unit]


def patience_s(probe: Manifest) -> int:
    """How long a probe may fail in a row before something is done."""
    return probe.get("failureThreshold", 3) * probe.get("periodSeconds", 10)


def check_probes(manifests: Manifests) -> None:
    """That liveness and readiness are names the server knows, test_manifests.py asks a server."""
    for service in SERVICES:
        settings, asked, probes = settings_of(manifests, service), {}, container(deployment(manifests, service))
        for name in ("startupProbe", "livenessProbe", "readinessProbe"):
            probe = probes[name]
            assert probe["grpc"]["port"] == port_of(settings.health_listen)
            assert "initialDelaySeconds" not in probe and probe.get("successThreshold", 1) == 1
            asked[name] = probe["grpc"]["service"]
        # Startup by liveness: a stage that is up but cannot serve yet must not be killed for it.
        assert asked == {"startupProbe": "liveness", "livenessProbe": "liveness", "readinessProbe": "readiness"}
        assert patience_s(probes["startupProbe"]) >= STARTUP_S[service], f"{service} is killed while it loads"
        # One late answer of a busy loop must kill no pod; the server itself looks a second long before it says so.
        live, ready = probes["livenessProbe"], probes["readinessProbe"]
        assert live["failureThreshold"] >= 3 and live["timeoutSeconds"] >= 3 and patience_s(live) >= 20, service
        assert patience_s(live) <= 60, f"{service} is left stuck"
        assert ready["failureThreshold"] >= 2 and ready["timeoutSeconds"] >= 2 and patience_s(ready) <= 20, service


def check_rollouts(manifests: Manifests) -> None:
    """A service with a card gives it up first, the others never have fewer than they should."""
    for service in SERVICES:
        manifest = deployment(manifests, service)
        resources = container(manifest)["resources"]
        has_card = "claims" in resources or any(name.startswith("nvidia.com/") for name in resources["limits"])
        strategy = manifest["spec"]["strategy"]
        assert strategy["type"] == "RollingUpdate"
        wanted = {"maxUnavailable": 1, "maxSurge": 0} if has_card else {"maxUnavailable": 0, "maxSurge": 1}
        assert strategy["rollingUpdate"] == wanted, f"{service}: {strategy}"
        budget = one(manifests, "PodDisruptionBudget", f"csm-{service}")["spec"]
        assert budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow", f"{service} keeps nodes from being drained"


def check_cards(manifests: Manifests, expected: frozenset[str]) -> None:
    """expected: services that have a card here."""
    nodes = {"key": "nvidia.com/gpu.present", "operator": "In", "values": ["true"]}
    for manifest in pods(manifests):
        name = manifest["metadata"]["name"].removeprefix("csm-")
        limits = container(manifest)["resources"]["limits"]
        cards = [(what, count) for what, count in limits.items() if what.startswith("nvidia.com/")]
        tolerations, affinity = pod(manifest).get("tolerations"), pod(manifest).get("affinity")
        if name in expected and (claimed := container(manifest)["resources"].get("claims")):
            assert not cards, f"{name} asks the device plugin too"
            (reference,) = pod(manifest)["resourceClaims"]
            assert claimed == [{"name": reference["name"]}]
            template = one(manifests, "ResourceClaimTemplate", reference["resourceClaimTemplateName"])
            (request,) = template["spec"]["spec"]["devices"]["requests"]
            assert request["exactly"] == {
                "deviceClassName": "gpu.nvidia.com",
                "allocationMode": "ExactCount",
                "count": 1,
            }
            assert tolerations == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
            assert "nodeAffinity" not in (affinity or {}), f"{name}: the claim chooses the node"
        elif name in expected:
            ((what, count),) = cards
            # A card, a share of one by the device plugin's name for it, or a slice.
            assert count == "1" and re.fullmatch(r"nvidia\.com/(gpu|gpu\.shared|mig-\dg\.\d+gb)", what), cards
            assert tolerations == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
            assert affinity
            required = affinity["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
            assert required and all(nodes in term["matchExpressions"] for term in required), f"{name} runs anywhere"
        else:
            assert not cards and not tolerations and not affinity, f"{name} needs no card"
            assert "resourceClaims" not in pod(manifest)
            assert "runtimeClassName" not in pod(manifest)
    for stage in STAGES:
        assert settings_of(manifests, stage).device == ("cuda" if stage in expected else "cpu"), stage
        # NVIDIA's device plugin mounts its MPS daemon's memory there, and a volume of the pod would hide it.
        paths = [mount["mountPath"] for mount in container(deployment(manifests, stage))["volumeMounts"]]
        assert not any(path.startswith("/dev") for path in paths), f"{stage} mounts over /dev"


def check_hardening(manifests: Manifests) -> None:
    for manifest in pods(manifests):
        name = manifest["metadata"]["name"]
        account = one(manifests, "ServiceAccount", pod(manifest)["serviceAccountName"])
        assert account["metadata"]["name"] == name and account["automountServiceAccountToken"] is False
        assert pod(manifest)["automountServiceAccountToken"] is False and pod(manifest)["enableServiceLinks"] is False
        context = pod(manifest)["securityContext"]
        assert context["runAsNonRoot"] is True and context["runAsUser"] > 0
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        # Before a container nothing runs but what fetches its weights.
        before = [spec["name"] for spec in pod(manifest).get("initContainers", [])]
        assert before in ([], ["weights"]) and "ephemeralContainers" not in pod(manifest), (
            f"{name}: who is that beside it?"
        )
        for key in ("hostNetwork", "hostPID", "hostIPC", "hostUsers"):
            assert key not in pod(manifest)
        volumes = {volume["name"]: volume for volume in pod(manifest)["volumes"]}
        kinds = {key for volume in volumes.values() for key in volume} - {"name"}
        assert kinds <= {"secret", "configMap", "persistentVolumeClaim", "emptyDir"}, f"{name} mounts {kinds}"
        for spec in containers(manifest):
            _check_container(name if spec is container(manifest) else "csm-weights", spec, volumes)
    namespace = one(manifests, "Namespace", "csm")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def _check_container(name: str, spec: Manifest, volumes: dict[str, Manifest]) -> None:
    """name: of what it does, which says what it may write. volumes: its pod's, by name."""
    assert spec["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    limits, requests = (spec["resources"][key] for key in ("limits", "requests"))
    assert "memory" in limits and {"cpu", "memory"} <= requests.keys()
    assert all(quantity(requests[key]) <= quantity(limits[key]) for key in requests.keys() & limits.keys()), name
    assert not any({"hostPort", "hostIP"} & port.keys() for port in spec.get("ports", []))
    mounted = {mount["mountPath"]: volumes[mount["name"]] for mount in spec["volumeMounts"]}
    if name != "csm-collector":  # Python's and torch's; the root file system is read-only
        assert "sizeLimit" in mounted["/tmp"]["emptyDir"], f"{name} has no /tmp"
    for mount in spec["volumeMounts"]:
        scratch = "emptyDir" in volumes[mount["name"]] and mount["name"] != "weights"
        # subPath would keep a renewed Secret from being seen.
        assert scratch or (name, mount["name"]) in WRITERS or mount.get("readOnly") is True, f"{name} writes {mount}"
        assert "subPath" not in mount
