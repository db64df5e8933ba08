"""What manifests must be, beside valid: each check holds them against the code. A check raises AssertionError.

Each takes rendered manifests; test_manifests.py runs them on every overlay, and on spoilt ones.
"""

from __future__ import annotations

import dataclasses
import re

from manifest_edges import check_edges
from manifests import (
    SERVICES,
    SETTINGS,
    STAGES,
    Manifests,
    container,
    deployment,
    environ,
    grpc_port,
    of_kind,
    one,
    pod,
    pods,
    port_of,
    selected,
    settings_of,
)

from models.bundle import known_bundles, load_bundle

# Variables that libraries read, not we; and POD_NAME, which another variable's value is made of.
OTHERS = {"HF_HOME", "HF_HUB_OFFLINE", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_INSECURE",
          "OTEL_RESOURCE_ATTRIBUTES", "POD_NAME"}
# Made by whoever runs the place, or by cert-manager; never in a repository.
SECRETS_FROM_OUTSIDE = {"csm-watermark-key", "csm-tokens", "csm-hub"} | {f"csm-{name}-tls" for name in SERVICES}


def check_variables_are_settings(manifests: Manifests) -> None:
    for service in SERVICES:
        known = {field.metadata["env"] for field in dataclasses.fields(SETTINGS[service])}
        values = environ(manifests, deployment(manifests, service))
        unknown = values.keys() - known - OTHERS
        assert not unknown, f"{service} does not read {sorted(unknown)}"
        settings_of(manifests, service)  # raises when a value does not parse or is beyond its limits
        names = [entry["name"] for entry in container(deployment(manifests, service))["env"]]
        assert len(names) == len(set(names)), f"{service} is told {names}"


def check_ports(manifests: Manifests) -> None:
    for service in SERVICES:
        settings = settings_of(manifests, service)
        ports = {port["name"]: port["containerPort"] for port in container(deployment(manifests, service))["ports"]}
        listened = {
            "grpc": port_of(settings.listen), "health": port_of(settings.health_listen),
            "metrics": port_of(settings.metrics_listen),
        }
        assert ports == listened, f"{service}: {ports}, listens on {listened}"
        assert len(set(ports.values())) == 3
        assert ports["grpc"] == grpc_port(service)
        addresses = (settings.listen, settings.health_listen, settings.metrics_listen)
        assert all(address.startswith("0.0.0.0:") for address in addresses)
        spec = one(manifests, "Service", f"csm-{service}")["spec"]
        assert spec["clusterIP"] == "None"  # headless
        assert [(port["port"], port["targetPort"]) for port in spec["ports"]] == [(ports["grpc"], "grpc")]
    for stage in STAGES:
        assert getattr(settings_of(manifests, "gateway"), stage) == f"csm-{stage}:{grpc_port(stage)}"


def check_selectors(manifests: Manifests) -> None:
    for manifest in of_kind(manifests, "Deployment"):
        name = manifest["metadata"]["name"]
        assert selected(manifests, manifest["spec"]["selector"]) == [name]
        for constraint in pod(manifest).get("topologySpreadConstraints", []):
            assert selected(manifests, constraint["labelSelector"]) == [name]
    for service in SERVICES:
        name = f"csm-{service}"
        assert selected(manifests, {"matchLabels": one(manifests, "Service", name)["spec"]["selector"]}) == [name]
        budget = one(manifests, "PodDisruptionBudget", name)["spec"]
        assert selected(manifests, budget["selector"]) == [name]
        assert budget["maxUnavailable"] == 1
        keys = {c["topologyKey"] for c in pod(deployment(manifests, service))["topologySpreadConstraints"]}
        assert keys == {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}
    for monitor in of_kind(manifests, "PodMonitor"):
        found = selected(manifests, monitor["spec"]["selector"])
        wanted = [f"csm-{service}" for service in SERVICES] if monitor["metadata"]["name"] == "csm" else ["csm-collector"]
        assert sorted(found) == sorted(set(wanted) & {m["metadata"]["name"] for m in pods(manifests)})
        for name in found:
            ports = [port["name"] for port in container(one(manifests, "Deployment", name))["ports"]]
            assert all(endpoint["port"] in ports for endpoint in monitor["spec"]["podMetricsEndpoints"])


def check_probes(manifests: Manifests) -> None:
    """That liveness and readiness are names the server knows, test_manifests.py asks a server."""
    for service in SERVICES:
        asked = {}
        for name in ("startupProbe", "livenessProbe", "readinessProbe"):
            probe = container(deployment(manifests, service))[name]
            assert probe["grpc"]["port"] == port_of(settings_of(manifests, service).health_listen)
            asked[name] = probe["grpc"]["service"]
        # Startup by liveness: a stage that is up but cannot serve yet must not be killed for it.
        assert asked == {"startupProbe": "liveness", "livenessProbe": "liveness", "readinessProbe": "readiness"}


def check_streams_may_end(manifests: Manifests) -> None:
    longest_s = settings_of(manifests, "gateway").max_request_s
    for service in SERVICES:
        settings = settings_of(manifests, service)
        assert settings.grace_s >= longest_s, f"{service} cuts streams at a stop"
        assert settings.connection_grace_s >= longest_s, f"{service} cuts streams as it renews a connection"
        pre_stop_s = container(deployment(manifests, service))["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert pre_stop_s > 0 and settings.drain_s > 0
        needed_s = pre_stop_s + settings.drain_s + settings.grace_s
        leaving_s = pod(deployment(manifests, service))["terminationGracePeriodSeconds"]
        assert leaving_s >= needed_s + 10, service
        startup = container(deployment(manifests, service))["startupProbe"]
        starting_s = startup["failureThreshold"] * startup.get("periodSeconds", 10)
        assert deployment(manifests, service)["spec"]["progressDeadlineSeconds"] > leaving_s + starting_s, service
    for behavior in autoscaling(manifests):
        down = behavior["scaleDown"]
        assert down["stabilizationWindowSeconds"] >= longest_s
        (policy,) = down["policies"]
        assert policy["type"] == "Pods" and policy["value"] == 1 and policy["periodSeconds"] >= longest_s
    for policy in of_kind(manifests, "BackendTrafficPolicy"):
        timeouts = policy["spec"]["timeout"]["http"]
        assert timeouts["requestTimeout"] == "0s" and timeouts["maxStreamDuration"] == "0s"
        # A unary call is silent until its answer.
        assert int(timeouts["streamIdleTimeout"].removesuffix("s")) > longest_s


def autoscaling(manifests: Manifests) -> list[dict]:
    found = [m["spec"]["behavior"] for m in of_kind(manifests, "HorizontalPodAutoscaler")]
    return found + [
        m["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"] for m in of_kind(manifests, "ScaledObject")
    ]


def check_autoscaling(manifests: Manifests) -> None:
    autoscaled = set()
    slots = settings_of(manifests, "backbone").slots
    queue = settings_of(manifests, "backbone").queue
    for manifest in of_kind(manifests, "HorizontalPodAutoscaler"):
        autoscaled.add(manifest["spec"]["scaleTargetRef"]["name"])
        (metric,) = manifest["spec"]["metrics"]
        assert metric["pods"]["metric"]["name"] == "csm_backbone_slots_active"
        assert slots / 2 <= float(metric["pods"]["target"]["averageValue"]) < slots
    for manifest in of_kind(manifests, "ScaledObject"):
        autoscaled.add(manifest["spec"]["scaleTargetRef"]["name"])
        thresholds = {trigger["name"]: trigger for trigger in manifest["spec"]["triggers"]}
        assert thresholds.keys() == {"queue", "slots"}
        assert "csm_backbone_queue_depth" in thresholds["queue"]["metadata"]["query"]
        assert "csm_backbone_slots_active" in thresholds["slots"]["metadata"]["query"]
        assert 0 < float(thresholds["queue"]["metadata"]["threshold"]) < queue
        assert slots / 2 <= float(thresholds["slots"]["metadata"]["threshold"]) < slots
        assert all(trigger["metricType"] == "AverageValue" for trigger in thresholds.values())
        # KEDA's default takes an empty answer for 0, and shrinks to the least under full load.
        assert all(trigger["metadata"]["ignoreNullValues"] == "false" for trigger in thresholds.values())
        spec = manifest["spec"]
        assert spec["minReplicaCount"] <= spec["fallback"]["replicas"] <= spec["maxReplicaCount"]
    assert autoscaled <= {"csm-backbone"}
    # Every stream of the largest number of backbones finds a place in the stages behind.
    most = [m["spec"]["maxReplicas"] for m in of_kind(manifests, "HorizontalPodAutoscaler")]
    most += [m["spec"]["maxReplicaCount"] for m in of_kind(manifests, "ScaledObject")]
    for replicas in most:
        for service, places in (("codec", "slots"), ("watermark", "streams")):
            behind = deployment(manifests, service)["spec"]["replicas"] * getattr(settings_of(manifests, service), places)
            assert replicas * slots <= behind, f"{service} has {behind} places for {replicas * slots} streams"
    for service in SERVICES:
        fixed = "replicas" in deployment(manifests, service)["spec"]
        assert fixed != (f"csm-{service}" in autoscaled), f"who says how many {service} there are?"


def check_cards(manifests: Manifests, expected: frozenset[str]) -> None:
    """expected: services that have a card here."""
    for manifest in pods(manifests):
        name = manifest["metadata"]["name"].removeprefix("csm-")
        cards = container(manifest)["resources"]["limits"].get("nvidia.com/gpu")
        tolerations = [rule["key"] for rule in pod(manifest).get("tolerations", [])]
        required = str(pod(manifest).get("affinity", {}))
        if name in expected:
            assert cards == "1" and tolerations == ["nvidia.com/gpu"] and "nvidia.com/gpu.present" in required
        else:
            assert not cards and not tolerations and "gpu" not in required, f"{name} needs no card"
            assert "runtimeClassName" not in pod(manifest)
    for stage in STAGES:
        assert settings_of(manifests, stage).device == ("cuda" if stage in expected else "cpu"), stage
    backbone = deployment(manifests, "backbone")
    (shm,) = (mount["name"] for mount in container(backbone)["volumeMounts"] if mount["mountPath"] == "/dev/shm")
    (volume,) = (volume for volume in pod(backbone)["volumes"] if volume["name"] == shm)
    assert volume["emptyDir"]["medium"] == "Memory"


def check_hardening(manifests: Manifests) -> None:
    for manifest in pods(manifests):
        name = manifest["metadata"]["name"]
        account = one(manifests, "ServiceAccount", pod(manifest)["serviceAccountName"])
        assert account["metadata"]["name"] == name and account["automountServiceAccountToken"] is False
        assert pod(manifest)["automountServiceAccountToken"] is False and pod(manifest)["enableServiceLinks"] is False
        context = pod(manifest)["securityContext"]
        assert context["runAsNonRoot"] is True and context["runAsUser"] > 0
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container(manifest)["securityContext"] == {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}
        }
        assert "memory" in container(manifest)["resources"]["limits"]
        for key in ("hostNetwork", "hostPID", "hostIPC"):
            assert key not in pod(manifest)
        volumes = {volume["name"]: volume for volume in pod(manifest)["volumes"]}
        assert not any("hostPath" in volume for volume in volumes.values())
        for mount in container(manifest)["volumeMounts"]:
            scratch = "emptyDir" in volumes[mount["name"]]
            # The Job alone may write the weights. subPath would keep a renewed Secret from being seen.
            assert scratch or name == "csm-weights" or mount.get("readOnly") is True, f"{name} writes {mount}"
            assert "subPath" not in mount
    namespace = one(manifests, "Namespace", "csm")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def check_references(manifests: Manifests) -> None:
    """ConfigMaps, Secrets and volumes that are named are here, or are the known ones from outside."""
    here = {(m["kind"], m["metadata"]["name"]) for m in manifests}
    for manifest in pods(manifests):
        named = [("ConfigMap", source["configMapRef"]["name"]) for source in container(manifest).get("envFrom", [])]
        for entry in container(manifest).get("env", []):
            reference = entry.get("valueFrom", {}).get("secretKeyRef")
            if reference:
                # A variable is seen by every child and in every dump: secrets are files, but for the hub's client.
                assert entry["name"] == "HF_TOKEN"
                named.append(("Secret", reference["name"]))
        for volume in pod(manifest)["volumes"]:
            if "secret" in volume:
                named.append(("Secret", volume["secret"]["secretName"]))
            if "configMap" in volume:
                named.append(("ConfigMap", volume["configMap"]["name"]))
            if "persistentVolumeClaim" in volume:
                named.append(("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]))
        for kind, name in named:
            assert (kind, name) in here or (kind == "Secret" and name in SECRETS_FROM_OUTSIDE), f"no {kind} {name}"
    for manifest in of_kind(manifests, "Certificate"):
        names = manifest["spec"].get("dnsNames")
        if names:
            service = manifest["metadata"]["name"]
            assert one(manifests, "Service", service) and service in names
            assert manifest["spec"]["secretName"] in SECRETS_FROM_OUTSIDE


def check_files_lie_where_settings_say(manifests: Manifests) -> None:
    for service in SERVICES:
        manifest = deployment(manifests, service)
        volumes = {volume["name"]: volume for volume in pod(manifest)["volumes"]}
        mounted = {mount["mountPath"]: volumes[mount["name"]] for mount in container(manifest)["volumeMounts"]}
        for name, value in environ(manifests, manifest).items():
            if name.endswith("_FILE"):
                folder, _, file = value.rpartition("/")
                assert "secret" in mounted[folder], f"{service}: {name}={value}"
                inside = {"CSM_WATERMARK_KEY_FILE": "key", "CSM_TOKENS_FILE": "tokens.toml"}.get(name)
                assert file == inside if inside else file in ("tls.crt", "tls.key", "ca.crt")


def check_who_may_come_in(manifests: Manifests) -> None:
    """Every server either has TLS or says by name that it has none; the same for tokens at the gateway."""
    for service in SERVICES:
        settings = settings_of(manifests, service)
        open_by_name = (settings.insecure or "").split(",")
        assert bool(settings.tls_cert_file) != ("plaintext" in open_by_name), f"{service} would not start"
        assert bool(settings.tls_cert_file) == bool(settings.tls_key_file)
    gateway = settings_of(manifests, "gateway")
    assert bool(gateway.tokens_file) != ("no-tokens" in (gateway.insecure or "").split(","))
    served_by_tls = {bool(settings_of(manifests, stage).tls_cert_file) for stage in STAGES}
    assert served_by_tls == {bool(gateway.upstream_ca_file)}
    asked = {bool(settings_of(manifests, stage).tls_client_ca_file) for stage in STAGES}
    assert asked == {bool(gateway.upstream_cert_file)} == {bool(gateway.upstream_key_file)}


def check_weights(manifests: Manifests) -> None:
    job = environ(manifests, one(manifests, "Job", "csm-weights"))
    assert job["CSM_MODEL"] in known_bundles()
    folder = container(one(manifests, "Job", "csm-weights"))["args"]
    assert folder == ["/models"]
    from_hub = any("repo" in source for source in load_bundle(job["CSM_MODEL"]).mimi.sources)
    for service in SERVICES:
        values = environ(manifests, deployment(manifests, service))
        assert values["HF_HUB_OFFLINE"] == "1" and values["HF_HOME"] == job["HF_HOME"]
        # models.fetch copies a bundle with weights to FOLDER/<name>; the hub's files go to HF_HOME.
        assert values["CSM_MODEL"] == (job["CSM_MODEL"] if from_hub else f"/models/{job['CSM_MODEL']}")
        mounts = {mount["mountPath"]: mount["name"] for mount in container(deployment(manifests, service))["volumeMounts"]}
        (claim,) = (v for v in pod(deployment(manifests, service))["volumes"] if v["name"] == mounts["/models"])
        assert claim["persistentVolumeClaim"] == {"claimName": "csm-weights", "readOnly": True}
    assert "HF_HUB_OFFLINE" not in job


def check_images(manifests: Manifests) -> None:
    """Each runs its own image, as its Dockerfile says; test_images.py holds those against the code."""
    for name in (*SERVICES, "weights"):
        manifest = one(manifests, "Job" if name == "weights" else "Deployment", f"csm-{name}")
        repository, _, tag = container(manifest)["image"].rpartition(":")
        assert repository.rpartition("/")[2] == f"csm-{name}", container(manifest)["image"]
        assert tag and tag != "latest"
        assert "command" not in container(manifest)
        assert "args" not in container(manifest) or name == "weights"


def check_metrics(manifests: Manifests, exported: frozenset[str]) -> None:
    """exported: series in Prometheus, by the tables of deploy/telemetry.md, which other tests hold to the code."""
    named = set()
    for manifest in of_kind(manifests, "HorizontalPodAutoscaler"):
        named |= {metric["pods"]["metric"]["name"] for metric in manifest["spec"]["metrics"]}
    for manifest in of_kind(manifests, "ScaledObject"):
        for trigger in manifest["spec"]["triggers"]:
            named |= set(re.findall(r"\bcsm_\w+", trigger["metadata"]["query"]))
    for manifest in of_kind(manifests, "PrometheusRule"):
        for group in manifest["spec"]["groups"]:
            made = {rule["record"] for rule in group["rules"] if "record" in rule}
            for rule in group["rules"]:
                named |= set(re.findall(r"\bcsm_\w+", rule["expr"])) - made
    assert named <= exported, f"nobody exports {sorted(named - exported)}"


def check_routes(manifests: Manifests) -> None:
    from csm.speech.v1 import speech_pb2

    for route in of_kind(manifests, "GRPCRoute"):
        (rule,) = route["spec"]["rules"]
        (match,) = rule["matches"]
        assert match["method"]["service"] == speech_pb2.DESCRIPTOR.services_by_name["SpeechService"].full_name
        (backend,) = rule["backendRefs"]
        (port,) = one(manifests, "Service", backend["name"])["spec"]["ports"]
        assert backend["port"] == port["port"]
        targets = [t for p in of_kind(manifests, "BackendTrafficPolicy") for t in p["spec"]["targetRefs"]]
        assert [(t["kind"], t["name"]) for t in targets] == [("GRPCRoute", route["metadata"]["name"])]
        encrypted = of_kind(manifests, "BackendTLSPolicy")
        assert bool(encrypted) == bool(settings_of(manifests, "gateway").tls_cert_file), "Envoy and gateway do not agree"
        for policy in encrypted:
            assert [(t["kind"], t["name"]) for t in policy["spec"]["targetRefs"]] == [("Service", backend["name"])]
            validation = policy["spec"]["validation"]
            assert validation["hostname"] == backend["name"]  # a name of its certificate
            (volume,) = (v for v in pod(deployment(manifests, "gateway"))["volumes"] if v["name"] == "tls")
            (authority,) = validation["caCertificateRefs"]
            assert (authority["kind"], authority["name"]) == ("Secret", volume["secret"]["secretName"])


# Those that need to know nothing but the manifests.
CHECKS = (
    check_variables_are_settings,
    check_ports,
    check_selectors,
    check_probes,
    check_streams_may_end,
    check_autoscaling,
    check_hardening,
    check_references,
    check_files_lie_where_settings_say,
    check_who_may_come_in,
    check_weights,
    check_images,
    check_edges,
    check_routes,
)
