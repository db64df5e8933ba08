"""What manifests must be, beside valid: each check holds them against the code. A check raises AssertionError.

Each takes rendered manifests; test_manifests.py runs them on every overlay, test_manifest_mutations.py on mutated ones.
Here are those of the chain as a whole; the others lie beside it, by what they look at.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import cast

from grpc_reflection.v1alpha import reflection

from gateway import public
from gateway.http.app import build_app
from gateway.http.config import HttpSettings
from gateway.http.upstream import Upstream
from services.runtime import health
from services.runtime.settings import SettingError, read
from support.manifests.edges import check_edges
from support.manifests.pods import check_cards, check_hardening, check_probes, check_rollouts
from support.manifests.rendered import (
    SERVICES,
    SETTINGS,
    STAGES,
    Manifests,
    container,
    containers,
    deployment,
    environ,
    environ_of,
    fetching,
    grpc_port,
    labels,
    of_kind,
    one,
    pod,
    pods,
    port_of,
    selected,
    settings_of,
)
from support.manifests.scaling import LAG, check_autoscaling, check_streams_may_end
from support.manifests.secrets import check_files_lie_where_settings_say, check_references, check_who_may_come_in
from support.manifests.weights import check_weights
from support.telemetry import promql

# Variables that libraries read, not we; and POD_NAME, which another variable's value is made of.
OTHERS = {
    "AWS_REGION",
    "AWS_SHARED_CREDENTIALS_FILE",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_INSECURE",
    "OTEL_RESOURCE_ATTRIBUTES",
    "POD_NAME",
}
# Every kind of object there may be: a role, a binding or another way in is found out by its kind.
KINDS = {
    "Namespace",
    "ServiceAccount",
    "Service",
    "ConfigMap",
    "Secret",
    "PersistentVolumeClaim",
    "Deployment",
    "Job",
    "PodDisruptionBudget",
    "NetworkPolicy",
    "HorizontalPodAutoscaler",
    "Issuer",
    "Certificate",
    "ScaledObject",
    "GRPCRoute",
    "BackendTLSPolicy",
    "BackendTrafficPolicy",
    "PodMonitor",
    "PrometheusRule",
    "SecurityPolicy",
    "ExternalSecret",
    "PriorityClass",
    "PersistentVolume",
    "ResourceClaimTemplate",
}
CLUSTER_WIDE = ("PriorityClass", "PersistentVolume")


def check_variables_are_settings(manifests: Manifests) -> None:
    for service in SERVICES:
        known = {field.metadata["env"] for field in dataclasses.fields(SETTINGS[service])}
        values = environ(manifests, deployment(manifests, service))
        unknown = values.keys() - known - OTHERS
        assert not unknown, f"{service} does not read {sorted(unknown)}"
        settings_of(manifests, service)  # raises when a value does not parse or is beyond its limits
        names = [entry["name"] for entry in container(deployment(manifests, service))["env"]]
        assert len(names) == len(set(names)), f"{service} has {names}"


def check_kinds(manifests: Manifests) -> None:
    (namespace,) = of_kind(manifests, "Namespace")
    for manifest in manifests:
        assert manifest["kind"] in KINDS, f"what is a {manifest['kind']} for?"
        if manifest is not namespace and manifest["kind"] not in CLUSTER_WIDE:
            assert manifest["metadata"]["namespace"] == namespace["metadata"]["name"], manifest["metadata"]["name"]


def check_ports(manifests: Manifests) -> None:
    for service in SERVICES:
        settings = settings_of(manifests, service)
        ports = {port["name"]: port["containerPort"] for port in container(deployment(manifests, service))["ports"]}
        listened = {
            "grpc": port_of(settings.listen),
            "health": port_of(settings.health_listen),
            "metrics": port_of(settings.metrics_listen),
        }
        assert ports == listened, f"{service}: {ports}, listens on {listened}"
        assert len(set(ports.values())) == 3
        assert ports["grpc"] == grpc_port(service)
        addresses = (settings.listen, settings.health_listen, settings.metrics_listen)
        assert all(address.startswith("0.0.0.0:") for address in addresses)
        spec = one(manifests, "Service", f"csm-{service}")["spec"]
        assert spec["clusterIP"] == "None"  # headless
        assert spec.keys() == {"clusterIP", "selector", "ports"}, f"{service}: {sorted(spec)}"
        assert [(port["port"], port["targetPort"]) for port in spec["ports"]] == [(ports["grpc"], "grpc")]
    for stage in STAGES:
        assert getattr(settings_of(manifests, "gateway"), stage) == f"csm-{stage}:{grpc_port(stage)}"
    services = {manifest["metadata"]["name"]: manifest["spec"] for manifest in of_kind(manifests, "Service")}
    assert services.keys() - {"csm-collector", "csm-http"} == {f"csm-{service}" for service in SERVICES}
    assert services.get("csm-collector", {}).keys() <= {"selector", "ports"}, "no way in from outside"


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
        wanted = (
            [f"csm-{service}" for service in (*SERVICES, "http")]
            if monitor["metadata"]["name"] == "csm"
            else ["csm-collector"]
        )
        assert sorted(found) == sorted(set(wanted) & {m["metadata"]["name"] for m in pods(manifests)})
        if monitor["metadata"]["name"] == "csm":  # else every service's job is csm/csm, and alerts name none
            (relabeling,) = monitor["spec"]["podMetricsEndpoints"][0]["relabelings"]
            (source,) = relabeling["sourceLabels"]
            assert source == "__meta_kubernetes_pod_label_app_kubernetes_io_component"
            for name in found:
                component = labels(one(manifests, "Deployment", name))["app.kubernetes.io/component"]
                assert (relabeling["targetLabel"], relabeling["replacement"].replace("$1", component)) == ("job", name)
        # Else Prometheus' own job and instance, the collector's, take the place of those that made the span.
        assert monitor["metadata"]["name"] == "csm" or all(
            e["honorLabels"] for e in monitor["spec"]["podMetricsEndpoints"]
        )
        for name in found:
            ports = [port["name"] for port in container(one(manifests, "Deployment", name))["ports"]]
            assert all(endpoint["port"] in ports for endpoint in monitor["spec"]["podMetricsEndpoints"])


def check_images(manifests: Manifests) -> None:
    """Each runs its own image, as its Dockerfile says; test_images.py holds those against the code."""
    run = [(name, container(deployment(manifests, name))) for name in SERVICES]
    for name, spec in run + [("weights", spec) for _, spec in fetching(manifests)]:
        repository, _, tag = spec["image"].rpartition(":")
        assert repository.rpartition("/")[2] == f"csm-{name}", spec["image"]
        assert tag and tag != "latest"
        assert "command" not in spec
        assert "args" not in spec or name == "weights"


def check_metrics(manifests: Manifests, exported: frozenset[str]) -> None:
    """exported: series in Prometheus, by the tables of docs/telemetry.md, which other tests hold to the code."""
    named = set()
    for manifest in of_kind(manifests, "HorizontalPodAutoscaler"):
        named |= {m["pods"]["metric"]["name"] for m in manifest["spec"]["metrics"] if "pods" in m} - {LAG}
    for manifest in of_kind(manifests, "ScaledObject"):
        for trigger in manifest["spec"]["triggers"]:
            named |= _series(trigger["metadata"]["query"])
    for manifest in of_kind(manifests, "PrometheusRule"):
        for group in manifest["spec"]["groups"]:
            made = {rule["record"] for rule in group["rules"] if "record" in rule}
            for rule in group["rules"]:
                named |= _series(rule["expr"]) - made
    assert named <= exported, f"not exported: {sorted(named - exported)}"


def _series(query: str) -> set[str]:
    """Series of ours that a query names; others are a cluster's own, such as `up`."""
    return {name for name, _ in promql.parse(query).selectors if name.startswith(("csm_", "rpc_"))}


def check_routes(manifests: Manifests) -> None:
    """The route carries what a gateway serves, and nothing else."""
    for route in of_kind(manifests, "GRPCRoute"):
        (rule,) = route["spec"]["rules"]
        served = [public.SPEECH, public.VOICE, public.RIVA, health.SERVICE_NAME, reflection.SERVICE_NAME]
        assert [match["method"] for match in rule["matches"]] == [{"service": name} for name in served]
        (backend,) = rule["backendRefs"]
        (port,) = one(manifests, "Service", backend["name"])["spec"]["ports"]
        assert backend["port"] == port["port"]
        targets = [t for p in of_kind(manifests, "BackendTrafficPolicy") for t in p["spec"]["targetRefs"]]
        assert [(t["kind"], t["name"]) for t in targets] == [("GRPCRoute", route["metadata"]["name"])]
        encrypted = of_kind(manifests, "BackendTLSPolicy")
        assert bool(encrypted) == bool(settings_of(manifests, "gateway").tls_cert_file), (
            "Envoy and gateway do not agree"
        )
        for policy in encrypted:
            assert [(t["kind"], t["name"]) for t in policy["spec"]["targetRefs"]] == [("Service", backend["name"])]
            validation = policy["spec"]["validation"]
            assert validation["hostname"] == backend["name"]  # a name of its certificate
            (volume,) = (v for v in pod(deployment(manifests, "gateway"))["volumes"] if v["name"] == "tls")
            (authority,) = validation["caCertificateRefs"]
            assert (authority["kind"], authority["name"]) == ("Secret", volume["secret"]["secretName"])
    for policy in of_kind(manifests, "SecurityPolicy"):
        (target,) = policy["spec"]["targetRefs"]
        assert one(manifests, target["kind"], target["name"]) and policy["spec"]["cors"]["allowCredentials"] is False


def check_http(manifests: Manifests) -> None:
    """The HTTP face: its own settings, its gateway, its way out to it."""
    if not any(manifest["metadata"]["name"] == "csm-http" for manifest in pods(manifests)):
        return
    face = one(manifests, "Deployment", "csm-http")
    values = environ(manifests, face)
    shared = {field.metadata["env"] for name in SERVICES for field in dataclasses.fields(SETTINGS[name])}
    known = {field.metadata["env"] for field in dataclasses.fields(HttpSettings)}
    assert not values.keys() - known - shared - OTHERS
    settings = read(HttpSettings, {name: value for name, value in values.items() if name in known})
    assert settings.gateway == f"csm-gateway:{grpc_port('gateway')}"
    assert (settings.timeout_s or 0) <= settings.grace_s, "a stop cuts requests"
    encrypted = bool(settings_of(manifests, "gateway").tls_cert_file)
    assert bool(settings.gateway_ca_file) == bool(settings.tls_cert_file) == encrypted
    assert encrypted or "plaintext" in (settings.insecure or ""), "it would not start"
    ports = {port["name"]: port["containerPort"] for port in container(face)["ports"]}
    assert ports == {"http": port_of(settings.listen), "metrics": port_of(settings.metrics_listen or "")}
    (port,) = one(manifests, "Service", "csm-http")["spec"]["ports"]
    assert (port["name"], port["port"], port["targetPort"]) == (
        *(("https", 443) if encrypted else ("http", 80)),
        "http",
    )
    for name, path in (("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", "/health")):
        probe = container(face)[name]["httpGet"]
        assert probe == {"path": path, "port": "http"} | ({"scheme": "HTTPS"} if encrypted else {})
    paths = {
        route.path
        for route in build_app(settings, cast(Upstream, None), lambda: False).routes
        if hasattr(route, "path")
    }
    assert {"/livez", "/health"} <= paths
    assert container(face)["image"] == container(deployment(manifests, "gateway"))["image"]
    assert container(face)["command"] == ["python", "-m", "gateway.http"]
    leaving_s = pod(face)["terminationGracePeriodSeconds"]
    assert (
        leaving_s >= container(face)["lifecycle"]["preStop"]["sleep"]["seconds"] + settings.drain_s + settings.grace_s
    )


def check_external_secrets(manifests: Manifests) -> None:
    """They make the Secrets that pods mount, by the same names and keys."""
    for manifest in of_kind(manifests, "ExternalSecret"):
        spec = manifest["spec"]
        assert spec["target"]["name"] == manifest["metadata"]["name"] and spec["secretStoreRef"]["name"] == "csm"
        (entry,) = spec["data"]
        mounted = {
            f"{mount['mountPath']}/{entry['secretKey']}"
            for p in pods(manifests)
            for volume in pod(p)["volumes"]
            if volume.get("secret", {}).get("secretName") == spec["target"]["name"]
            for each in containers(p)
            for mount in each["volumeMounts"]
            if mount["name"] == volume["name"]
        }
        run = [spec for p in pods(manifests) for spec in containers(p)]
        named = {value for spec in run for value in environ_of(manifests, spec).values()}
        keys = [
            (e["valueFrom"]["secretKeyRef"]["name"], e["valueFrom"]["secretKeyRef"]["key"])
            for spec in run
            for e in spec.get("env", [])
            if "secretKeyRef" in e.get("valueFrom", {})
        ]
        assert mounted & named or (spec["target"]["name"], entry["secretKey"]) in keys, manifest["metadata"]["name"]


# Those that need to know nothing but the manifests.
CHECKS: tuple[Callable[..., None], ...] = (
    check_variables_are_settings,
    check_kinds,
    check_ports,
    check_selectors,
    check_probes,
    check_rollouts,
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
    check_http,
    check_external_secrets,
)


def failures(manifests: Manifests, cards: frozenset[str], exported: frozenset[str]) -> dict[str, Exception]:
    """Checks that object, by name, and with what. cards, exported: see check_cards and check_metrics."""
    found: dict[str, Exception] = {}
    everything: list[tuple[Callable[..., None], tuple[frozenset[str], ...]]] = [(check, ()) for check in CHECKS]
    everything += [(check_cards, (cards,)), (check_metrics, (exported,))]
    for check, arguments in everything:
        try:
            check(manifests, *arguments)
        except (
            AssertionError,
            KeyError,
            TypeError,
            ValueError,
            SettingError,
        ) as error:  # what is not there is a KeyError
            found[check.__name__] = error
    return found
