"""Every overlay builds, is valid on every Kubernetes it is for, and fits the code; spoilt manifests are found out."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable

import grpc
import kubernetes_validate
import manifest_checks as checks
import pytest
import telemetry_tables
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc
from manifests import (
    DEPLOY,
    SERVICES,
    Manifest,
    Manifests,
    container,
    deployment,
    of_kind,
    one,
    pod,
    port_of,
    render,
    settings_of,
)

from services.runtime.server import Stage, StageServer
from services.runtime.settings import ServerSettings, SettingError

OLDEST, NEWEST = "1.30", "1.37"  # 1.30 is the first whose preStop can sleep by itself
# Kinds that are no part of Kubernetes, and have no schema here.
FOREIGN = {
    "Issuer": "cert-manager.io/v1",
    "Certificate": "cert-manager.io/v1",
    "ScaledObject": "keda.sh/v1alpha1",
    "GRPCRoute": "gateway.networking.k8s.io/v1",
    "BackendTLSPolicy": "gateway.networking.k8s.io/v1",
    "BackendTrafficPolicy": "gateway.envoyproxy.io/v1alpha1",
    "PodMonitor": "monitoring.coreos.com/v1",
    "PrometheusRule": "monitoring.coreos.com/v1",
}

WATCHED = ("observability", "prometheus-operator")
# What is deployed → which services have a card. Every component is in one of them.
DEPLOYED: dict[tuple[str, tuple[str, ...]], frozenset[str]] = {
    ("overlays/cpu-dev", ()): frozenset(),
    ("overlays/cpu-dev", ("gateway-api",)): frozenset(),
    ("overlays/gpu", ()): frozenset({"backbone", "codec"}),
    ("overlays/gpu", (*WATCHED, "hpa", "gateway-api-tls", "gpu-tokenizer", "gpu-watermark", "nvidia-runtime")): frozenset(
        {"tokenizer", "backbone", "codec", "watermark"}
    ),
    ("overlays/gpu", (*WATCHED, "keda")): frozenset({"backbone", "codec"}),
    ("overlays/gpu", ("prometheus-operator",)): frozenset({"backbone", "codec"}),
}
FULL = list(DEPLOYED)[3]
KEDA = list(DEPLOYED)[4]


@pytest.fixture(scope="module")
def exported() -> frozenset[str]:
    return frozenset(name for metric in telemetry_tables.metrics() for name in metric.series)


def failures(manifests: Manifests, cards: frozenset[str], exported: frozenset[str]) -> dict[str, Exception]:
    """Checks that object, by name, and with what."""
    found: dict[str, Exception] = {}
    for check, arguments in (
        *((check, ()) for check in checks.CHECKS), (checks.check_cards, (cards,)), (checks.check_metrics, (exported,))
    ):
        try:
            check(manifests, *arguments)
        except (AssertionError, KeyError, ValueError, SettingError) as error:  # what is not there is a KeyError
            found[check.__name__] = error
    return found


@functools.cache
def valid(text: str, version: str) -> bool:
    return bool(kubernetes_validate.validate(json.loads(text), version, strict=True))


def check_schemas(manifests: Manifests, version: str) -> None:
    for manifest in manifests:
        if FOREIGN.get(manifest["kind"]) != manifest["apiVersion"]:
            assert valid(json.dumps(manifest), version)  # most are the same in all overlays


@pytest.mark.parametrize("deployed", DEPLOYED, ids=lambda d: "+".join([d[0].rpartition("/")[2], *d[1]]))
def test_what_is_deployed_is_valid_and_fits_the_code(deployed, exported):
    overlay, components = deployed
    manifests = render(overlay, components)
    assert failures(manifests, DEPLOYED[deployed], exported) == {}
    for version in (OLDEST, NEWEST):
        check_schemas(manifests, version)


def test_every_component_is_in_something_deployed():
    written = {path.name for path in (DEPLOY / "components").iterdir()}
    used = {name for _, components in DEPLOYED for name in components}
    for overlay in ("cpu-dev", "gpu"):
        text = (DEPLOY / f"overlays/{overlay}/kustomization.yaml").read_text()
        used |= set(re.findall(r"^  - ../../components/([\w-]+)$", text, re.MULTILINE))
    used |= {"tls"}  # by mtls
    assert written - {"plaintext"} == used
    assert {path.name for path in (DEPLOY / "overlays").iterdir()} == {"cpu-dev", "gpu"}


@pytest.mark.parametrize(
    ("component", "insecure", "encrypted"),
    [("plaintext", "plaintext", False), ("tls", "", True), ("open", "plaintext,no-tokens", False)],
)
def test_each_way_in_starts_by_itself(component, insecure, encrypted):
    tokens = () if component == "open" else ("tokens",)
    manifests = render("base", (component, *tokens))
    checks.check_who_may_come_in(manifests)
    checks.check_files_lie_where_settings_say(manifests)
    checks.check_references(manifests)
    for service in SERVICES:
        settings = settings_of(manifests, service)
        assert (settings.insecure or "") == insecure and bool(settings.tls_cert_file) == encrypted


def test_the_base_alone_lets_nobody_in():
    with pytest.raises(AssertionError, match="would not start"):
        checks.check_who_may_come_in(render("base"))


async def test_probes_ask_for_names_that_a_server_knows():
    probed = {
        container(deployment(render("overlays/cpu-dev"), service))[name]["grpc"]["service"]
        for service in SERVICES
        for name in ("startupProbe", "livenessProbe", "readinessProbe")
    }
    settings = ServerSettings(listen="127.0.0.1:0", health_listen="127.0.0.1:0", grace_s=0)
    server = StageServer(Stage(service="csm.some.v1.Service", register=lambda server: None), settings)
    await server.start()
    try:
        async with grpc.aio.insecure_channel(server.health_address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            for name in probed:
                answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
                assert answer.status == health_pb2.HealthCheckResponse.SERVING
            with pytest.raises(grpc.aio.AioRpcError) as unknown:  # a wrong name is not simply taken as well
                await health.Check(health_pb2.HealthCheckRequest(service="alive"))
            assert unknown.value.code() == grpc.StatusCode.NOT_FOUND
    finally:
        await server.stop()


def test_prometheus_is_given_the_rules_of_the_file():
    rule = one(render(*FULL), "PrometheusRule", "csm")
    same = rule["spec"] == yaml.safe_load((DEPLOY / "alerts/csm.rules.yaml").read_text())
    assert same, "run: python deploy/components/prometheus-operator/build.py"


def test_the_collector_is_given_its_file():
    manifests = render(*FULL)
    (volume,) = pod(one(manifests, "Deployment", "csm-collector"))["volumes"]
    config = one(manifests, "ConfigMap", volume["configMap"]["name"])
    text = config["data"]["config.yaml"]
    assert text == (DEPLOY / "collector/config.yaml").read_text()
    receivers = yaml.safe_load(text)["receivers"]
    collector = container(one(manifests, "Deployment", "csm-collector"))
    ports = {port["name"]: port["containerPort"] for port in collector["ports"]}
    assert port_of(receivers["otlp"]["protocols"]["grpc"]["endpoint"]) == ports["otlp"]
    assert port_of(yaml.safe_load(text)["exporters"]["prometheus"]["endpoint"]) == ports["metrics"]
    assert port_of(yaml.safe_load(text)["extensions"]["health_check"]["endpoint"]) == ports["health"]
    assert set(re.findall(r"\$\{env:(\w+)\}", text)) == {entry["name"] for entry in collector["env"]}
    (port,) = one(manifests, "Service", "csm-collector")["spec"]["ports"]
    endpoint = one(manifests, "ConfigMap", settings_name(manifests))["data"]["OTEL_EXPORTER_OTLP_ENDPOINT"]
    assert endpoint == f"http://csm-collector:{port['port']}"
    shown = one(manifests, "ConfigMap", "csm-dashboards")["data"]
    assert shown.keys() == {path.name for path in (DEPLOY / "dashboards").glob("*.json")}


def settings_name(manifests: Manifests) -> str:
    return container(deployment(manifests, "gateway"))["envFrom"][0]["configMapRef"]["name"]


# --- spoilt manifests -------------------------------------------------------------------------------------------

Spoil = Callable[[Manifests], object]


def variable(manifests: Manifests, service: str, name: str) -> Manifest:
    (entry,) = (e for e in container(deployment(manifests, service))["env"] if e["name"] == name)
    return entry


def volume(manifests: Manifests, service: str, name: str) -> Manifest:
    (found,) = (volume for volume in pod(deployment(manifests, service))["volumes"] if volume["name"] == name)
    return found


def mount(manifests: Manifests, service: str, name: str) -> Manifest:
    (found,) = (m for m in container(deployment(manifests, service))["volumeMounts"] if m["name"] == name)
    return found


def settings_map(manifests: Manifests) -> dict[str, str]:
    return one(manifests, "ConfigMap", settings_name(manifests))["data"]


def policy(manifests: Manifests, name: str) -> Manifest:
    return one(manifests, "NetworkPolicy", name)["spec"]


def drop(manifests: Manifests, kind: str, name: str) -> None:
    manifests.remove(one(manifests, kind, name))


def limits(manifests: Manifests, service: str) -> dict[str, str]:
    return container(deployment(manifests, service))["resources"]["limits"]


def scaled(manifests: Manifests) -> Manifest:
    return one(manifests, "ScaledObject", "csm-backbone")["spec"]


def scaler(manifests: Manifests) -> Manifest:
    return one(manifests, "HorizontalPodAutoscaler", "csm-backbone")["spec"]


SPOILT: dict[str, Spoil] = {
    "unknown variable": lambda m: variable(m, "gateway", "CSM_MAX_REQUEST_S").update(name="CSM_MAX_REQUESTS"),
    "value beyond its limit": lambda m: variable(m, "backbone", "CSM_BACKBONE_SLOTS").update(value="0"),
    "value of another kind": lambda m: settings_map(m).update(CSM_GRACE_S="long"),
    "unknown variable for all": lambda m: settings_map(m).update(CSM_DRAINS="5"),
    "another service's setting": lambda m: variable(m, "codec", "CSM_CODEC_SLOTS").update(name="CSM_BACKBONE_SLOTS"),
    "gRPC port": lambda m: container(deployment(m, "codec"))["ports"][0].update(containerPort=50054),
    "Service's port": lambda m: one(m, "Service", "csm-watermark")["spec"]["ports"][0].update(port=50055),
    "Service not headless": lambda m: one(m, "Service", "csm-backbone")["spec"].pop("clusterIP"),
    "address of a stage": lambda m: variable(m, "gateway", "CSM_CODEC_ADDRESS").update(value="csm-codec:50054"),
    "name of a stage": lambda m: variable(m, "gateway", "CSM_CODEC_ADDRESS").update(value="codec:50053"),
    "on loopback": lambda m: variable(m, "tokenizer", "CSM_LISTEN").update(value="127.0.0.1:50051"),
    "metrics elsewhere": lambda m: settings_map(m).update(CSM_METRICS_LISTEN="0.0.0.0:9090"),
    "Service selects nobody": lambda m: one(m, "Service", "csm-codec")["spec"]["selector"].update(
        {"app.kubernetes.io/component": "codecs"}
    ),
    "Service selects all": lambda m: one(m, "Service", "csm-codec")["spec"]["selector"].pop(
        "app.kubernetes.io/component"
    ),
    "Deployment selects another's pods": lambda m: deployment(m, "codec")["spec"]["selector"]["matchLabels"].update(
        {"app.kubernetes.io/component": "backbone"}
    ),
    "budget of another": lambda m: one(m, "PodDisruptionBudget", "csm-codec")["spec"]["selector"]["matchLabels"].update(
        {"app.kubernetes.io/component": "backbone"}
    ),
    "no budget": lambda m: drop(m, "PodDisruptionBudget", "csm-gateway"),
    "spread of another": lambda m: pod(deployment(m, "codec"))["topologySpreadConstraints"][0]["labelSelector"][
        "matchLabels"
    ].update({"app.kubernetes.io/component": "backbone"}),
    "monitor's port": lambda m: one(m, "PodMonitor", "csm")["spec"]["podMetricsEndpoints"][0].update(port="http"),
    "probe of the wrong port": lambda m: container(deployment(m, "codec"))["livenessProbe"]["grpc"].update(port=50053),
    "liveness by readiness": lambda m: container(deployment(m, "codec"))["livenessProbe"]["grpc"].update(
        service="readiness"
    ),
    "no probe": lambda m: container(deployment(m, "codec")).pop("startupProbe"),
    "grace too short": lambda m: pod(deployment(m, "backbone")).update(terminationGracePeriodSeconds=300),
    "streams longer than grace": lambda m: variable(m, "gateway", "CSM_MAX_REQUEST_S").update(value="301"),
    "no drain": lambda m: settings_map(m).update(CSM_DRAIN_S="0"),
    "no preStop": lambda m: container(deployment(m, "gateway")).pop("lifecycle"),
    "fast scale-down": lambda m: scaler(m)["behavior"]["scaleDown"]["policies"][0].update(periodSeconds=60),
    "scale-down by half": lambda m: scaler(m)["behavior"]["scaleDown"]["policies"][0].update(type="Percent", value=50),
    "Envoy tired of silence": lambda m: one(m, "BackendTrafficPolicy", "csm-speech")["spec"]["timeout"]["http"].update(
        streamIdleTimeout="60s"
    ),
    "a rollout given up too early": lambda m: deployment(m, "backbone")["spec"].update(progressDeadlineSeconds=600),
    "more backbones than codecs": lambda m: scaler(m).update(maxReplicas=8),
    "Envoy's own timeout": lambda m: one(m, "BackendTrafficPolicy", "csm-speech")["spec"]["timeout"]["http"].pop(
        "requestTimeout"
    ),
    "target above the slots": lambda m: scaler(m)["metrics"][0]["pods"]["target"].update(averageValue="16"),
    "fewer slots than the target": lambda m: variable(m, "backbone", "CSM_BACKBONE_SLOTS").update(value="8"),
    "replicas beside an autoscaler": lambda m: deployment(m, "backbone")["spec"].update(replicas=2),
    "nobody says how many": lambda m: deployment(m, "codec")["spec"].pop("replicas"),
    "no card": lambda m: limits(m, "backbone").pop("nvidia.com/gpu"),
    "a card for the gateway": lambda m: limits(m, "gateway").update({"nvidia.com/gpu": "1"}),
    "no toleration": lambda m: pod(deployment(m, "backbone")).pop("tolerations"),
    "any node": lambda m: pod(deployment(m, "backbone")).pop("affinity"),
    "card but not used": lambda m: variable(m, "codec", "CSM_CODEC_DEVICE").update(value="cpu"),
    "no shared memory": lambda m: container(deployment(m, "backbone"))["volumeMounts"].remove(mount(m, "backbone", "shm")),
    "root": lambda m: pod(deployment(m, "codec"))["securityContext"].update(runAsUser=0),
    "writable root": lambda m: container(deployment(m, "codec"))["securityContext"].update(readOnlyRootFilesystem=False),
    "capabilities": lambda m: container(one(m, "Job", "csm-weights"))["securityContext"].pop("capabilities"),
    "token of the API": lambda m: one(m, "ServiceAccount", "csm-codec").update(automountServiceAccountToken=True),
    "the namespace's own account": lambda m: pod(deployment(m, "codec")).update(serviceAccountName="default"),
    "weights can be written": lambda m: mount(m, "codec", "weights").pop("readOnly"),
    "certificates that are never renewed": lambda m: mount(m, "codec", "tls").update(subPath="tls.crt"),
    "folder of the node": lambda m: volume(m, "codec", "tmp").update(hostPath={"path": "/tmp"}),
    "no limit of memory": lambda m: limits(m, "watermark").pop("memory"),
    "anything in the namespace": lambda m: one(m, "Namespace", "csm")["metadata"]["labels"].clear(),
    "no such ConfigMap": lambda m: container(deployment(m, "codec"))["envFrom"][0]["configMapRef"].update(name="csm"),
    "no such Secret": lambda m: volume(m, "watermark", "key")["secret"].update(secretName="csm-key"),
    "key in a variable": lambda m: container(deployment(m, "watermark"))["env"].append(
        {"name": "CSM_WATERMARK_KEY", "valueFrom": {"secretKeyRef": {"name": "csm-watermark-key", "key": "key"}}}
    ),
    "certificate for another name": lambda m: one(m, "Certificate", "csm-codec")["spec"].update(dnsNames=["codec"]),
    "key elsewhere": lambda m: variable(m, "watermark", "CSM_WATERMARK_KEY_FILE").update(value="/etc/csm/key"),
    "no such file in the Secret": lambda m: variable(m, "codec", "CSM_TLS_KEY_FILE").update(value="/etc/csm/tls/key.pem"),
    "one stage in plaintext": lambda m: [
        variable(m, "codec", name).update(value="") for name in ("CSM_TLS_CERT_FILE", "CSM_TLS_KEY_FILE")
    ],
    "TLS and plaintext": lambda m: settings_map(m).update(CSM_INSECURE="plaintext"),
    "a stage that asks no certificate": lambda m: variable(m, "codec", "CSM_TLS_CLIENT_CA_FILE").update(value=""),
    "the gateway trusts anybody": lambda m: variable(m, "gateway", "CSM_UPSTREAM_CA_FILE").update(value=""),
    "no tokens": lambda m: variable(m, "gateway", "CSM_TOKENS_FILE").update(value=""),
    "the hub asked by a pod": lambda m: settings_map(m).pop("HF_HUB_OFFLINE"),
    "weights of another bundle": lambda m: settings_map(m).update(CSM_MODEL="embedded"),
    "claim of another": lambda m: volume(m, "codec", "weights")["persistentVolumeClaim"].update(claimName="weights"),
    "another's image": lambda m: container(deployment(m, "codec")).update(image="csm-backbone:0.1.0"),
    "latest": lambda m: container(deployment(m, "codec")).update(image="csm-codec:latest"),
    "another command": lambda m: container(deployment(m, "codec")).update(command=["python", "-m", "services.codecs"]),
    "metric that nobody exports": lambda m: scaler(m)["metrics"][0]["pods"]["metric"].update(
        name="csm_backbone_active_slots"
    ),
    "rule on what nobody exports": lambda m: one(m, "PrometheusRule", "csm")["spec"]["groups"][0]["rules"][0].update(
        expr="rate(csm_rpc_seconds_count[5m]) > 0"
    ),
    "missing edge in": lambda m: drop(m, "NetworkPolicy", "gateway-to-codec"),
    "missing edge out": lambda m: policy(m, "gateway-egress")["egress"].pop(),
    "edge past the gateway": lambda m: policy(m, "gateway-to-codec")["ingress"][0]["from"].append(
        {"podSelector": {"matchLabels": {"app.kubernetes.io/component": "backbone"}}}
    ),
    "from everywhere": lambda m: policy(m, "gateway-to-codec")["ingress"][0].update({"from": []}),
    "on every port": lambda m: policy(m, "callers-to-gateway")["ingress"][0].update(ports=[]),
    "the wrong port": lambda m: policy(m, "gateway-to-codec")["ingress"][0]["ports"][0].update(port=50052),
    "nothing is denied": lambda m: drop(m, "NetworkPolicy", "deny-all"),
    "only one way is denied": lambda m: policy(m, "deny-all").update(policyTypes=["Ingress"]),
    "denied for some": lambda m: policy(m, "deny-all").update(
        podSelector={"matchLabels": {"app.kubernetes.io/component": "gateway"}}
    ),
    "the hub for all": lambda m: policy(m, "weights-to-hub").update(podSelector={}),
    "policy of no pod": lambda m: policy(m, "prometheus-to-collector")["podSelector"]["matchLabels"].update(
        {"app.kubernetes.io/name": "collector"}
    ),
    "no collector": lambda m: policy(m, "services-otlp")["egress"].pop(0),
    "another service is routed": lambda m: one(m, "GRPCRoute", "csm-speech")["spec"]["rules"][0]["matches"][0][
        "method"
    ].update(service="csm.speech.SpeechService"),
    "route to the wrong port": lambda m: one(m, "GRPCRoute", "csm-speech")["spec"]["rules"][0]["backendRefs"][0].update(
        port=443
    ),
    "Envoy in plaintext": lambda m: drop(m, "BackendTLSPolicy", "csm-gateway"),
    "Envoy expects another": lambda m: one(m, "BackendTLSPolicy", "csm-gateway")["spec"]["validation"].update(
        hostname="csm.example"
    ),
    "timeouts of another route": lambda m: one(m, "BackendTrafficPolicy", "csm-speech")["spec"]["targetRefs"][0].update(
        name="csm"
    ),
}
SPOILT_KEDA: dict[str, Spoil] = {
    "query of what nobody exports": lambda m: scaled(m)["triggers"][0]["metadata"].update(query="sum(csm_queue_depth)"),
    "more waiting than the queue holds": lambda m: scaled(m)["triggers"][0]["metadata"].update(threshold="32"),
    "fallback below the least": lambda m: scaled(m)["fallback"].update(replicas=1),
    "no series is no load": lambda m: scaled(m)["triggers"][1]["metadata"].pop("ignoreNullValues"),
    "fallback that does not work": lambda m: scaled(m)["triggers"][1].update(metricType="Value"),
    "fast scale-down": lambda m: scaled(m)["advanced"]["horizontalPodAutoscalerConfig"]["behavior"][
        "scaleDown"
    ].update(stabilizationWindowSeconds=60),
}
SPOILT_DEV: dict[str, Spoil] = {
    "no names": lambda m: drop(m, "NetworkPolicy", "gateway-dns"),  # elsewhere the collector's policy has them too
    "no such claim": lambda m: one(m, "PersistentVolumeClaim", "csm-weights")["metadata"].update(name="csm"),
    "tokens beside no-tokens": lambda m: container(deployment(m, "gateway"))["env"].append(
        {"name": "CSM_TOKENS_FILE", "value": "/etc/csm/tokens/tokens.toml"}
    ),
}
SPOILT_FOR_KUBERNETES: dict[str, Spoil] = {
    "misspelt field": lambda m: container(deployment(m, "codec")).update(redinessProbe={}),
    "field out of place": lambda m: deployment(m, "codec")["spec"].update(terminationGracePeriodSeconds=330),
    "number as text": lambda m: one(m, "Service", "csm-codec")["spec"]["ports"][0].update(port="50053"),
    "no such kind": lambda m: one(m, "PodDisruptionBudget", "csm-codec").update(apiVersion="policy/v1beta1"),
}


ALL_SPOILT = ((FULL, SPOILT), (KEDA, SPOILT_KEDA), (next(iter(DEPLOYED)), SPOILT_DEV))


@pytest.mark.parametrize(
    ("deployed", "spoil"),
    [pytest.param(deployed, spoil, id=name) for deployed, spoils in ALL_SPOILT for name, spoil in spoils.items()],
)
def test_a_spoilt_manifest_is_found_out(deployed, spoil, exported):
    manifests = render(*deployed)
    spoil(manifests)
    assert manifests != render(*deployed)
    assert failures(manifests, DEPLOYED[deployed], exported)


def test_every_check_finds_something(exported):
    found: set[str] = set()
    for deployed, spoils in ALL_SPOILT:
        for spoil in spoils.values():
            manifests = render(*deployed)
            spoil(manifests)
            found |= failures(manifests, DEPLOYED[deployed], exported).keys()
    assert found == {check.__name__ for check in (*checks.CHECKS, checks.check_cards, checks.check_metrics)}


@pytest.mark.parametrize("spoil", SPOILT_FOR_KUBERNETES.values(), ids=SPOILT_FOR_KUBERNETES)
def test_the_schemas_find_what_kubernetes_would_refuse(spoil):
    manifests = render("overlays/cpu-dev")
    spoil(manifests)
    with pytest.raises((kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError)):
        check_schemas(manifests, NEWEST)


def test_kinds_without_a_schema_are_the_ones_known():
    kinds = {manifest["kind"] for deployed in DEPLOYED for manifest in render(*deployed)}
    assert kinds >= set(FOREIGN)
    assert of_kind(render(*FULL), "PodMonitor")
