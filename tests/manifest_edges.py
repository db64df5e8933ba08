"""Who may talk to whom, by the NetworkPolicies: both sides of every edge, against the chain as the code has it."""

from __future__ import annotations

import dataclasses

from manifests import SERVICES, Manifests, environ, grpc_port, labels, matches, of_kind, one, pods, selected

from gateway.config import GatewaySettings

DNS = ("dns", 53)


def edges(manifests: Manifests) -> tuple[set, set]:
    """(what may come in, what may go out), each as (from, to, port). Names: services, or what stands outside."""

    def peers(rule: dict, key: str) -> list[str]:
        found = []
        for peer in rule[key]:
            if "ipBlock" in peer:
                found.append("hub" if peer["ipBlock"]["cidr"] == "0.0.0.0/0" else peer["ipBlock"]["cidr"])
            elif "namespaceSelector" in peer:
                (outside,) = peer["namespaceSelector"]["matchLabels"].items()
                name = {"kube-system": "dns", "csm-caller": "caller"}.get(outside[0]) or {
                    "kube-system": "dns", "true": "caller"}.get(outside[1], outside[1])
                if name == "dns":
                    assert peer["podSelector"]["matchLabels"] == {"k8s-app": "kube-dns"}
                found.append(name)
            else:
                found += [name.removeprefix("csm-") for name in selected(manifests, peer["podSelector"])]
        return found

    into, out = set(), set()
    for policy in of_kind(manifests, "NetworkPolicy"):
        spec = policy["spec"]
        own = [name.removeprefix("csm-") for name in selected(manifests, spec["podSelector"])]
        for rule in spec.get("ingress", []):
            into |= {
                (peer, mine, port["port"]) for peer in peers(rule, "from") for mine in own for port in rule["ports"]
            }
        for rule in spec.get("egress", []):
            out |= {
                (mine, peer, port["port"]) for peer in peers(rule, "to") for mine in own for port in rule["ports"]
            }
    return into, out


def check_edges(manifests: Manifests) -> None:
    """The chain's edges, by the gateway's own settings, and none other; for what is deployed beside it, its own."""
    stages = [field.name for field in dataclasses.fields(GatewaySettings) if field.metadata["env"].endswith("_ADDRESS")]
    chain = {("gateway", stage, grpc_port(stage)) for stage in stages}
    into = chain | {("caller", "gateway", grpc_port("gateway"))}
    out = chain | {("gateway", *DNS)}
    if "csm-collector" in [m["metadata"]["name"] for m in pods(manifests)]:
        otlp = {(service, "collector", 4317) for service in SERVICES}
        into |= otlp | {("monitoring", "collector", 8889)}
        out |= otlp | {(name, *DNS) for name in (*SERVICES, "collector")} | {("collector", "monitoring", 4317)}
    if of_kind(manifests, "PodMonitor"):
        into |= {("monitoring", service, 9464) for service in SERVICES}
    if of_kind(manifests, "GRPCRoute"):
        into |= {("envoy-gateway-system", "gateway", grpc_port("gateway"))}
    if environ(manifests, one(manifests, "Job", "csm-weights"))["CSM_MODEL"] == "csm-1b":
        out |= {("weights", "hub", 443), ("weights", *DNS)}
    seen_into, seen_out = edges(manifests)
    assert seen_into == into, f"in: too many {seen_into - into}, missing {into - seen_into}"
    assert seen_out == out, f"out: too many {seen_out - out}, missing {out - seen_out}"
    # And all else is refused: one policy takes every pod, both ways, and has no rule.
    deny = one(manifests, "NetworkPolicy", "deny-all")["spec"]
    assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for policy in of_kind(manifests, "NetworkPolicy"):
        if policy["metadata"]["name"] != "deny-all":
            # A rule without peers or ports is a door to or from everywhere.
            for key, direction in (("ingress", "from"), ("egress", "to")):
                assert all(rule[direction] and rule["ports"] for rule in policy["spec"].get(key, []))
            taken = [m for m in pods(manifests) if matches(policy["spec"]["podSelector"], labels(m))]
            assert taken, f"{policy['metadata']['name']} is of no pod"
