"""Mutations of rendered manifests, each of which some check must find. How many, and for how long: graces, timeouts, autoscalers and what they ask."""

from __future__ import annotations

from support.manifest_mutations.mutation import Mutation, scaled, scaler, settings_map, variable
from support.manifests.rendered import Manifest, Manifests, deployment, one, pod


def _codec_metrics(manifests: Manifests) -> list[Manifest]:
    return one(manifests, "HorizontalPodAutoscaler", "csm-codec")["spec"]["metrics"]


def _lag(manifests: Manifests) -> Manifest:
    return _codec_metrics(manifests)[1]["pods"]


SCALING: dict[str, Mutation] = {
    "grace too short": lambda m: pod(deployment(m, "backbone")).update(terminationGracePeriodSeconds=300),
    "streams longer than grace": lambda m: variable(m, "gateway", "CSM_MAX_REQUEST_S").update(value="301"),
    "no drain": lambda m: settings_map(m).update(CSM_DRAIN_S="0"),
    "fast scale-down": lambda m: scaler(m)["behavior"]["scaleDown"]["policies"][0].update(periodSeconds=60),
    "scale-down by half": lambda m: scaler(m)["behavior"]["scaleDown"]["policies"][0].update(type="Percent", value=50),
    "Envoy tired of silence": lambda m: one(m, "BackendTrafficPolicy", "csm-speech")["spec"]["timeout"]["http"].update(
        streamIdleTimeout="60s"
    ),
    "a rollout given up too early": lambda m: deployment(m, "backbone")["spec"].update(progressDeadlineSeconds=600),
    "more backbones than codecs": lambda m: scaler(m).update(maxReplicas=9),
    "Envoy's own timeout": lambda m: one(m, "BackendTrafficPolicy", "csm-speech")["spec"]["timeout"]["http"].pop(
        "requestTimeout"
    ),
    "target above the slots": lambda m: scaler(m)["metrics"][0]["pods"]["target"].update(averageValue="16"),
    "fewer slots than the target": lambda m: variable(m, "backbone", "CSM_BACKBONE_SLOTS").update(value="8"),
    "lag that an alert sees first": lambda m: _lag(m)["target"].update(averageValue="200m"),
    "lag by no name of the adapter": lambda m: _lag(m)["metric"].update(name="csm_event_loop_lag_seconds_bucket"),
    "a codec that nothing but streams scales": lambda m: _codec_metrics(m).pop(),
    "replicas beside an autoscaler": lambda m: deployment(m, "backbone")["spec"].update(replicas=2),
    "no replica count": lambda m: deployment(m, "tokenizer")["spec"].pop("replicas"),
    "metric that is not exported": lambda m: scaler(m)["metrics"][0]["pods"]["metric"].update(
        name="csm_backbone_active_slots"
    ),
    "rule on an unknown series": lambda m: one(m, "PrometheusRule", "csm")["spec"]["groups"][0]["rules"][0].update(
        expr="rate(rpc_server_call_seconds_count[5m]) > 0"
    ),
}

# With KEDA.
KEDA: dict[str, Mutation] = {
    "query of an unknown series": lambda m: scaled(m)["triggers"][0]["metadata"].update(query="sum(csm_queue_depth)"),
    "more waiting than the queue holds": lambda m: scaled(m)["triggers"][0]["metadata"].update(threshold="32"),
    "fallback below the least": lambda m: scaled(m)["fallback"].update(replicas=1),
    "no series is no load": lambda m: scaled(m)["triggers"][1]["metadata"].pop("ignoreNullValues"),
    "fallback that does not work": lambda m: scaled(m)["triggers"][1].update(metricType="Value"),
    "fast scale-down": lambda m: scaled(m)["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"].update(
        stabilizationWindowSeconds=60
    ),
    "another Prometheus": lambda m: scaled(m)["triggers"][0]["metadata"].update(serverAddress="http://prometheus:9090"),
    "Prometheus by no URL": lambda m: scaled(m)["triggers"][1]["metadata"].update(
        serverAddress="prometheus-operated.monitoring:9090"
    ),
    "another namespace's queue": lambda m: scaled(m)["triggers"][0]["metadata"].update(
        query='sum(csm_backbone_queue_depth{namespace="nope"})'
    ),
    "all namespaces' slots": lambda m: scaled(m)["triggers"][1]["metadata"].update(
        query="sum(csm_backbone_slots_active)"
    ),
}
