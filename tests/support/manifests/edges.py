"""Who may talk to whom, by the NetworkPolicies: both sides of every edge, against the chain as the code has it."""

from __future__ import annotations

import dataclasses
import re
from urllib.parse import urlsplit

from gateway.config import GatewaySettings
from support.manifests.rendered import (
    SERVICES,
    Manifest,
    Manifests,
    environ,
    environ_of,
    fetching,
    grpc_port,
    labels,
    matches,
    of_kind,
    one,
    pods,
    selected,
    settings_of,
)

DNS = {("dns", 53, "UDP"), ("dns", 53, "TCP")}
NAMESPACE = "kubernetes.io/metadata.name"  # a label that Kubernetes itself gives
# The hub is outside: not in the cluster, nor where a cloud keeps its nodes' credentials.
INSIDE = {"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "100.64.0.0/10"}


def who(manifests: Manifests, peer: Manifest) -> list[str]:
    """Names of a rule's peer: services, or what stands outside; an unknown peer is written out."""
    if peer.keys() == {"podSelector"} and (names := selected(manifests, peer["podSelector"])):
        return [name.removeprefix("csm-") for name in names]
    if peer == {"namespaceSelector": {"matchLabels": {"csm-caller": "true"}}}:
        return ["caller"]
    if (
        peer.keys() == {"ipBlock"}
        and peer["ipBlock"]["cidr"] == "0.0.0.0/0"
        and INSIDE <= set(peer["ipBlock"]["except"])
    ):
        return ["hub"]
    if peer.keys() == {"ipBlock"} and peer["ipBlock"].keys() == {"cidr"} and peer["ipBlock"]["cidr"].endswith("/32"):
        return [peer["ipBlock"]["cidr"].removesuffix("/32")]
    system = {"namespaceSelector": {"matchLabels": {NAMESPACE: "kube-system"}}}
    if peer == system | {"podSelector": {"matchLabels": {"k8s-app": "kube-dns"}}}:
        return ["dns"]
    for namespace in ("monitoring", "envoy-gateway-system"):
        if peer == {"namespaceSelector": {"matchLabels": {NAMESPACE: namespace}}}:
            return [namespace]
    return [str(peer)]


def edges(manifests: Manifests) -> tuple[set, set]:
    """(what may come in, what may go out), each as (from, to, port, protocol)."""
    into, out = set(), set()
    for policy in of_kind(manifests, "NetworkPolicy"):
        spec = policy["spec"]
        own = [name.removeprefix("csm-") for name in selected(manifests, spec["podSelector"])]
        for rule in spec.get("ingress", []):
            into |= {
                (peer, mine, *port) for peer in peers(manifests, rule["from"]) for mine in own for port in ports(rule)
            }
        for rule in spec.get("egress", []):
            out |= {
                (mine, peer, *port) for peer in peers(manifests, rule["to"]) for mine in own for port in ports(rule)
            }
    return into, out


def peers(manifests: Manifests, side: list[Manifest]) -> list[str]:
    return [name for peer in side for name in who(manifests, peer)]


def ports(rule: Manifest) -> list[tuple[int, str]]:
    for port in rule["ports"]:
        assert port.keys() == {"port", "protocol"}, f"more than one port: {port}"
    return [(port["port"], port["protocol"]) for port in rule["ports"]]


def check_edges(manifests: Manifests) -> None:
    """The chain's edges, by the gateway's own settings, and none other; for what is deployed beside it, its own."""
    stages = [field.name for field in dataclasses.fields(GatewaySettings) if field.metadata["env"].endswith("_ADDRESS")]
    chain = {("gateway", stage, grpc_port(stage), "TCP") for stage in stages}
    into = chain | {("caller", "gateway", grpc_port("gateway"), "TCP")}
    asks_for_names = {"gateway"}
    out = set(chain)
    has_http = "csm-http" in [m["metadata"]["name"] for m in pods(manifests)]
    if "csm-collector" in [m["metadata"]["name"] for m in pods(manifests)]:
        senders = {*SERVICES, *(["http"] if has_http else [])}
        otlp = {(service, "collector", 4317, "TCP") for service in senders}
        into |= otlp | {("monitoring", "collector", 8889, "TCP")}
        out |= otlp | {("collector", "monitoring", 4317, "TCP")}
        asks_for_names |= {*senders, "collector"}
        for service in senders:  # else all pods of one are one instance
            attributes = environ(manifests, one(manifests, "Deployment", f"csm-{service}"))["OTEL_RESOURCE_ATTRIBUTES"]
            assert attributes == "service.instance.id=$(POD_NAME)", service
    if has_http:
        into |= {("caller", "http", 50055, "TCP"), ("http", "gateway", grpc_port("gateway"), "TCP")}
        out |= {("http", "gateway", grpc_port("gateway"), "TCP")}
        asks_for_names |= {"http"}
    if of_kind(manifests, "PodMonitor"):
        into |= {("monitoring", service, 9464, "TCP") for service in (*SERVICES, *(["http"] if has_http else []))}
    if of_kind(manifests, "GRPCRoute"):
        into |= {("envoy-gateway-system", "gateway", grpc_port("gateway"), "TCP")}
    for manifest, spec in fetching(manifests):
        fetch = environ_of(manifests, spec)
        if fetch["CSM_MODEL"] == "csm-1b" or "CSM_WEIGHTS_URL" in fetch:
            name, proxy = manifest["metadata"]["name"].removeprefix("csm-"), urlsplit(fetch.get("HTTPS_PROXY", ""))
            out |= {(name, proxy.hostname, proxy.port or 80, "TCP") if proxy.hostname else (name, "hub", 443, "TCP")}
            asks_for_names |= {name}
    if re.match(r"\w+://", settings_of(manifests, "gateway").voices_url or ""):
        out |= {("gateway", "hub", 443, "TCP")}
    out |= {(name, *dns) for name in asks_for_names for dns in DNS}
    seen_into, seen_out = edges(manifests)
    assert seen_into == into, f"in: too many {seen_into - into}, missing {into - seen_into}"
    assert seen_out == out, f"out: too many {seen_out - out}, missing {out - seen_out}"
    # And all else is refused: one policy takes every pod, both ways, and has no rule.
    deny = one(manifests, "NetworkPolicy", "deny-all")["spec"]
    assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for policy in of_kind(manifests, "NetworkPolicy"):
        if policy["metadata"]["name"] != "deny-all":
            # A direction that is not named is not what the policy is of: its rules would be no rules.
            directions = [key.title() for key in ("ingress", "egress") if policy["spec"].get(key)]
            assert directions and policy["spec"]["policyTypes"] == directions, policy["metadata"]["name"]
            # A rule without peers or ports is a door to or from everywhere.
            for key, direction in (("ingress", "from"), ("egress", "to")):
                assert all(rule[direction] and rule["ports"] for rule in policy["spec"].get(key, []))
            taken = [m for m in pods(manifests) if matches(policy["spec"]["podSelector"], labels(m))]
            assert taken, f"{policy['metadata']['name']} is of no pod"
