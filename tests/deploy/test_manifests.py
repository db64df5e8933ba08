"""Every overlay builds, is valid on every Kubernetes it is for, and fits the code."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import grpc
import jsonschema
import kubernetes_validate
import pytest
import yaml
from csm.version import __version__
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.runtime.server import Stage, StageServer
from services.runtime.settings import ServerSettings
from support.manifest_mutations.mutation import Mutation, settings_name
from support.manifests import checks, custom_resources
from support.manifests.overlays import DEPLOYED, DRA, FULL, KEDA, oldest
from support.manifests.rendered import (
    DEPLOY,
    SERVICES,
    STAGES,
    Manifests,
    container,
    containers,
    deployment,
    environ,
    environ_of,
    fetching,
    of_kind,
    one,
    pod,
    pods,
    port_of,
    render,
    settings_of,
)

NEWEST = "1.37"


@functools.cache
def valid(text: str, version: str) -> bool:
    return bool(kubernetes_validate.validate(json.loads(text), version, strict=True))


def check_schemas(manifests: Manifests, version: str) -> None:
    for manifest in manifests:
        if (manifest["apiVersion"], manifest["kind"]) in custom_resources.schemas():
            custom_resources.check(manifest)
        else:  # every kind has a schema, there or here
            assert valid(json.dumps(manifest), version)  # most are the same in all overlays


@pytest.mark.parametrize("deployed", DEPLOYED, ids=lambda d: "+".join([d[0].rpartition("/")[2], *d[1]]))
def test_what_is_deployed_is_valid_and_fits_the_code(deployed, exported):
    overlay, components = deployed
    manifests = render(overlay, components)
    assert checks.failures(manifests, DEPLOYED[deployed], exported) == {}
    for version in (oldest(deployed), NEWEST):
        check_schemas(manifests, version)


def test_every_component_is_in_something_deployed():
    written = {path.name for path in (DEPLOY / "components").iterdir()}
    used = {name for _, components in DEPLOYED for name in components}
    for overlay in ("cpu-dev", "gpu", "one-card"):
        text = (DEPLOY / f"overlays/{overlay}/kustomization.yaml").read_text()
        used |= set(re.findall(r"^  - ../../components/([\w-]+)$", text, re.MULTILINE))
    used |= {"tls", "renamed", "places", "weights-init"}  # by mtls; in a test of its own; by weights-node
    assert written - {"plaintext"} == used
    assert {path.name for path in (DEPLOY / "overlays").iterdir()} == {"cpu-dev", "gpu", "one-card"}


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


KUBERNETES_MUTATIONS: dict[str, Mutation] = {
    "misspelt field": lambda m: container(deployment(m, "codec")).update(redinessProbe={}),
    "field out of place": lambda m: deployment(m, "codec")["spec"].update(terminationGracePeriodSeconds=330),
    "number as text": lambda m: one(m, "Service", "csm-codec")["spec"]["ports"][0].update(port="50053"),
    "no such kind": lambda m: one(m, "PodDisruptionBudget", "csm-codec").update(apiVersion="policy/v1beta1"),
}


CLAIM_MUTATIONS: dict[str, Mutation] = {
    "a class at the place of v1beta1": lambda m: _request(m).update(deviceClassName="gpu.nvidia.com"),
    "a count as text": lambda m: _request(m)["exactly"].update(count="1"),
    "no class": lambda m: _request(m)["exactly"].pop("deviceClassName"),
    "a claim without a name": lambda m: pod(deployment(m, "codec"))["resourceClaims"][0].pop("name"),
}


def _request(manifests: Manifests) -> dict:
    return one(manifests, "ResourceClaimTemplate", "csm-card")["spec"]["spec"]["devices"]["requests"][0]


@pytest.mark.parametrize("mutate", CLAIM_MUTATIONS.values(), ids=CLAIM_MUTATIONS)
def test_the_schemas_find_a_claim_that_is_none(mutate):
    manifests = render(*DRA)
    mutate(manifests)
    with pytest.raises(kubernetes_validate.ValidationError):
        check_schemas(manifests, NEWEST)


@pytest.mark.parametrize("mutate", KUBERNETES_MUTATIONS.values(), ids=KUBERNETES_MUTATIONS)
def test_the_schemas_find_what_kubernetes_would_refuse(mutate):
    manifests = render("overlays/cpu-dev")
    mutate(manifests)
    with pytest.raises((kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError)):
        check_schemas(manifests, NEWEST)


CUSTOM_MUTATIONS: dict[str, Mutation] = {
    "KEDA: a field that is none": lambda m: one(m, "ScaledObject", "csm-backbone")["spec"].update(maxReplicas=4),
    "KEDA: a trigger without a type": lambda m: one(m, "ScaledObject", "csm-backbone")["spec"]["triggers"][0].pop(
        "type"
    ),
    "KEDA: a number as text": lambda m: one(m, "ScaledObject", "csm-backbone")["spec"].update(pollingInterval="15"),
    "Gateway API: a port too large": lambda m: of_kind(m, "GRPCRoute")[0]["spec"]["rules"][0]["backendRefs"][0].update(
        port=70_000
    ),
    "Gateway API: a match of HTTP's": lambda m: of_kind(m, "GRPCRoute")[0]["spec"]["rules"][0]["matches"][0].update(
        path={"value": "/"}
    ),
    "Envoy Gateway: a duration that is none": lambda m: of_kind(m, "BackendTrafficPolicy")[0]["spec"]["timeout"][
        "http"
    ].update(requestTimeout="never"),
    "cert-manager: no secret": lambda m: of_kind(m, "Certificate")[0]["spec"].pop("secretName"),
    "cert-manager: a usage that is none": lambda m: of_kind(m, "Certificate")[0]["spec"].update(usages=["serving"]),
    "operator: a severity of its own": lambda m: of_kind(m, "PrometheusRule")[0]["spec"]["groups"][0]["rules"][
        0
    ].update(severity="critical"),
    "operator: a port that is no name": lambda m: of_kind(m, "PodMonitor")[0]["spec"]["podMetricsEndpoints"][0].update(
        port=9464
    ),
}


@pytest.mark.parametrize("mutate", CUSTOM_MUTATIONS.values(), ids=CUSTOM_MUTATIONS)
def test_the_projects_own_schemas_find_what_they_would_refuse(mutate):
    manifests = render(*FULL) + render(*KEDA)
    mutate(manifests)
    with pytest.raises(jsonschema.ValidationError):
        check_schemas(manifests, NEWEST)


def test_names_with_a_prefix_and_a_suffix_are_used_wherever_they_are_meant(tmp_path):
    """namePrefix and nameSuffix, and `renamed` on top: addresses, certificates and references follow."""

    def write(name: str, content: dict) -> None:
        (tmp_path / name).mkdir()
        (tmp_path / name / "kustomization.yaml").write_text(yaml.safe_dump(content))

    def path(name: str) -> str:
        return os.path.relpath(DEPLOY / name, (tmp_path / "inner").resolve())

    chosen = ("gateway-api-tls", "keda", "weights-node", "weights-store")
    components = [path(f"components/{name}") for name in chosen]
    write(
        "inner", {"namePrefix": "a-", "nameSuffix": "-b", "resources": [path("overlays/gpu")], "components": components}
    )
    write("outer", {"resources": ["../inner"], "components": [path("components/renamed")]})
    kubectl = Path(sys.executable).with_name("kubectl")
    text = subprocess.run([kubectl, "kustomize", tmp_path / "outer"], capture_output=True, text=True, check=True).stdout
    manifests = list(yaml.safe_load_all(text))
    plain = render("overlays/gpu", chosen)
    named = {m["metadata"]["name"] for m in plain if m["kind"] in ("Service", "Issuer", "GRPCRoute", "Deployment")}
    names = {m["metadata"]["name"] for m in manifests if m["kind"] in ("Service", "Issuer", "GRPCRoute", "Deployment")}
    assert names == {f"a-{name}-b" for name in named}
    gateway = container(one(manifests, "Deployment", "a-csm-gateway-b"))
    hosts = {e["value"].split(":")[0] for e in gateway["env"] if e["name"].endswith("_ADDRESS")}
    assert hosts == {f"a-csm-{stage}-b" for stage in STAGES}
    for manifest in of_kind(manifests, "Certificate"):
        assert manifest["spec"]["issuerRef"]["name"] in names
        assert {name.split(".")[0] for name in manifest["spec"].get("dnsNames", ())} <= {manifest["metadata"]["name"]}
    (route,) = of_kind(manifests, "GRPCRoute")
    (scaled,) = of_kind(manifests, "ScaledObject")
    (tls,) = of_kind(manifests, "BackendTLSPolicy")
    (timeouts,) = of_kind(manifests, "BackendTrafficPolicy")
    assert route["spec"]["rules"][0]["backendRefs"][0]["name"] == "a-csm-gateway-b"
    assert tls["spec"]["targetRefs"][0]["name"] == tls["spec"]["validation"]["hostname"] == "a-csm-gateway-b"
    assert timeouts["spec"]["targetRefs"][0]["name"] == route["metadata"]["name"]
    assert scaled["spec"]["scaleTargetRef"]["name"] == "a-csm-backbone-b"
    # Each set its own volume, and the claim is on it.
    (volume,), (claim,) = of_kind(manifests, "PersistentVolume"), of_kind(manifests, "PersistentVolumeClaim")
    assert volume["metadata"]["name"] == claim["spec"]["volumeName"] == claim["metadata"]["name"] == "a-csm-weights-b"
    spec = pod(one(manifests, "Deployment", "a-csm-gateway-b"))
    (mounted,) = [v["persistentVolumeClaim"] for v in spec["volumes"] if v["name"] == "weights"]
    assert mounted["claimName"] == "a-csm-weights-b"
    fetch = environ_of(manifests, spec["initContainers"][0])
    assert (
        fetch["CSM_WEIGHTS_URL"]
        and fetch["CSM_MODEL"] == environ(manifests, one(manifests, "Deployment", "a-csm-gateway-b"))["CSM_MODEL"]
    )


def test_places_puts_other_names_into_every_policy(tmp_path):
    """Namespaces and DNS labels are values of one ConfigMap; none of the usual ones is left."""
    values = {"dnsNamespace": "dns-ns", "dnsApp": "dns-app", "monitoring": "watchers", "envoyGateway": "edge"}

    def path(name: str) -> str:
        return os.path.relpath(DEPLOY / name, (tmp_path / "inner").resolve())

    def write(name: str, content: dict) -> None:
        (tmp_path / name).mkdir()
        (tmp_path / name / "kustomization.yaml").write_text(yaml.safe_dump(content))

    merged = {"name": "csm-places", "namespace": "csm", "behavior": "merge"}
    merged |= {"literals": [f"{key}={value}" for key, value in values.items()]}
    chosen = ("observability", "prometheus-operator", "gateway-api-tls", "http-tls", "weights-node", "weights-store")
    components = [path(f"components/{name}") for name in chosen]
    inner = {"resources": [path("overlays/gpu")], "components": components, "configMapGenerator": [merged]}
    write("inner", inner)
    write("outer", {"resources": ["../inner"], "components": [path("components/places")]})
    kubectl = Path(sys.executable).with_name("kubectl")
    text = subprocess.run([kubectl, "kustomize", tmp_path / "outer"], capture_output=True, text=True, check=True).stdout
    policies = json.dumps(of_kind(list(yaml.safe_load_all(text)), "NetworkPolicy"))
    before = json.dumps(of_kind(render("overlays/gpu", chosen), "NetworkPolicy"))
    old = one(render("overlays/gpu"), "ConfigMap", "csm-places")["data"]
    for key, value in values.items():
        assert policies.count(f'"{value}"') == before.count(f'"{old[key]}"') > 0, key
        assert f'"{old[key]}"' not in policies, key


@pytest.mark.parametrize("components", [(), ("weights-node",), ("weights-pod",)], ids=lambda c: c[0] if c else "Job")
def test_two_releases_share_no_folder_and_each_pod_reads_what_was_fetched_for_it(components):
    """One parameter, ConfigMap csm-model: by its name, which ends in a hash, an old ReplicaSet keeps its own."""
    seen = {}
    for version in (__version__, "9.9.9"):
        literal = f"CSM_MODEL=/models/{version}/embedded"
        merged = {"name": "csm-model", "namespace": "csm", "behavior": "merge", "literals": [literal]}
        more = yaml.safe_dump({"configMapGenerator": [merged]})
        manifests = render("base", components, more if version == "9.9.9" else "{}")
        read = [environ(manifests, deployment(manifests, service))["CSM_MODEL"] for service in SERVICES]
        filled = [environ_of(manifests, spec)["CSM_MODEL"] for _, spec in fetching(manifests)]
        assert {*read, *filled} == {f"/models/{version}/embedded"}, version
        assert len(filled) == (len(SERVICES) if components else 1)
        names = {
            source["configMapRef"]["name"] for m in pods(manifests) for c in containers(m) for source in c["envFrom"]
        }
        seen[version] = {name for name in names if name.startswith("csm-model-")}
        assert len(seen[version]) == 1, "some pod would not roll with the model"
    assert seen[__version__] != seen["9.9.9"]


def test_images_have_the_tag_of_this_version():
    for overlay in ("overlays/gpu", "overlays/one-card"):
        for manifest in render(overlay):
            if manifest["kind"] in ("Deployment", "Job"):
                assert container(manifest)["image"].endswith(f":{__version__}"), overlay
