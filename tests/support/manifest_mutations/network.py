"""Mutations of rendered manifests, each of which some check must find. Ports, names, and who may reach whom."""

from __future__ import annotations

from support.manifest_mutations.mutation import Mutation, drop, policy, service, settings_map, variable
from support.manifests.rendered import container, deployment, one

NETWORK: dict[str, Mutation] = {
    "gRPC port": lambda m: container(deployment(m, "codec"))["ports"][0].update(containerPort=50054),
    "Service's port": lambda m: one(m, "Service", "csm-watermark")["spec"]["ports"][0].update(port=50055),
    "Service not headless": lambda m: one(m, "Service", "csm-backbone")["spec"].pop("clusterIP"),
    "address of a stage": lambda m: variable(m, "gateway", "CSM_CODEC_ADDRESS").update(value="csm-codec:50054"),
    "name of a stage": lambda m: variable(m, "gateway", "CSM_CODEC_ADDRESS").update(value="codec:50053"),
    "on loopback": lambda m: variable(m, "tokenizer", "CSM_LISTEN").update(value="127.0.0.1:50051"),
    "metrics elsewhere": lambda m: settings_map(m).update(CSM_METRICS_LISTEN="0.0.0.0:9090"),
    "Service selects no pod": lambda m: one(m, "Service", "csm-codec")["spec"]["selector"].update(
        {"app.kubernetes.io/component": "codecs"}
    ),
    "Service selects all": lambda m: one(m, "Service", "csm-codec")["spec"]["selector"].pop(
        "app.kubernetes.io/component"
    ),
    "Deployment selects another's pods": lambda m: deployment(m, "codec")["spec"]["selector"]["matchLabels"].update(
        {"app.kubernetes.io/component": "backbone"}
    ),
    "one job for all": lambda m: one(m, "PodMonitor", "csm")["spec"]["podMetricsEndpoints"][0]["relabelings"].pop(),
    "no way for the HTTP face's spans": lambda m: policy(m, "services-otlp")["podSelector"]["matchExpressions"][0][
        "values"
    ].remove("http"),
    "monitor's port": lambda m: one(m, "PodMonitor", "csm")["spec"]["podMetricsEndpoints"][0].update(port="http"),
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
    "edge of another protocol": lambda m: policy(m, "gateway-to-codec")["ingress"][0]["ports"][0].update(
        protocol="UDP"
    ),
    "names by TCP alone": lambda m: [
        policy(m, name)["egress"][-1]["ports"].pop(0) for name in ("gateway-dns", "services-otlp")
    ],
    "ports from there on": lambda m: policy(m, "gateway-to-codec")["ingress"][0]["ports"][0].update(endPort=65535),
    "rules of a direction that is not named": lambda m: policy(m, "gateway-to-codec").update(policyTypes=["Egress"]),
    "a direction too many": lambda m: policy(m, "gateway-to-codec").update(policyTypes=["Ingress", "Egress"]),
    "callers who are none": lambda m: policy(m, "callers-to-gateway")["ingress"][0]["from"][0][
        "namespaceSelector"
    ].update(matchLabels={"csm-caller": "false"}),
    "callers by another label": lambda m: policy(m, "callers-to-gateway")["ingress"][0]["from"][0][
        "namespaceSelector"
    ].update(matchLabels={"anything": "true"}),
    "callers from everywhere": lambda m: policy(m, "callers-to-gateway")["ingress"][0]["from"].append(
        {"namespaceSelector": {}}
    ),
    "a stranger's pods": lambda m: policy(m, "gateway-to-codec")["ingress"][0]["from"].append(
        {"podSelector": {"matchLabels": {"app": "stranger"}}}
    ),
    "names from anybody": lambda m: policy(m, "gateway-dns")["egress"][0]["to"][0].pop("podSelector"),
    "policy of another namespace": lambda m: one(m, "NetworkPolicy", "deny-all")["metadata"].update(
        namespace="default"
    ),
    "the hub inside": lambda m: policy(m, "weights-to-hub")["egress"][1]["to"][0]["ipBlock"].pop("except"),
    "the cloud's own addresses": lambda m: policy(m, "weights-to-hub")["egress"][1]["to"][0]["ipBlock"][
        "except"
    ].remove("169.254.0.0/16"),
    "a stage for the world": lambda m: service(m, "watermark").update(type="LoadBalancer"),
    "a stage at the node": lambda m: service(m, "watermark").update(externalIPs=["192.0.2.1"]),
    "another way to a stage": lambda m: m.append(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "public", "namespace": "csm"},
            "spec": {
                "type": "NodePort",
                "selector": {"app.kubernetes.io/component": "watermark"},
                "ports": [{"port": 1}],
            },
        }
    ),
    "the collector for the world": lambda m: service(m, "collector").update(type="LoadBalancer"),
    "the collector in place of who made the span": lambda m: one(m, "PodMonitor", "csm-collector")["spec"][
        "podMetricsEndpoints"
    ][0].pop("honorLabels"),
}
