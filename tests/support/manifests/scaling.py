"""How many there are, and how long they may take: autoscalers, graces, timeouts. For checks.py."""

from __future__ import annotations

from urllib.parse import urlsplit

from support.manifests.pods import patience_s, quantity
from support.manifests.rendered import SERVICES, Manifests, container, deployment, of_kind, pod, settings_of

# Service → the series that it is scaled by, and the setting that says how many there may be.
PLACES = {
    "backbone": ("csm_backbone_slots_active", "slots"),
    "codec": ("csm_codec_slots_active", "slots"),
    "watermark": ("csm_watermark_streams_active", "streams"),
    "gateway": ("csm_gateway_streams_active", "max_streams"),
}
LAG = "csm_event_loop_lag_p95_seconds"  # made by the adapter of a histogram's series


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
        starting_s = patience_s(container(deployment(manifests, service))["startupProbe"])
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
        name = manifest["spec"]["scaleTargetRef"]["name"]
        autoscaled.add(name)
        metric, *others = manifest["spec"]["metrics"]
        series, places = PLACES[name.removeprefix("csm-")]
        room = getattr(settings_of(manifests, name.removeprefix("csm-")), places)
        assert metric["pods"]["metric"]["name"] == series
        assert room / 2 <= float(metric["pods"]["target"]["averageValue"]) < room
        lags = [other["pods"] for other in others if "pods" in other]
        if name != "csm-backbone":  # its frames are the device's, not the loop's
            (lag,) = lags
            assert lag["metric"]["name"] == LAG
            assert 0.01 < quantity(lag["target"]["averageValue"]) < 0.15, (
                "CsmEventLoopLag fires before another replica comes"
            )
        # An event loop is one core at most: more than that would never be reached.
        for other in others:
            if "pods" not in other:
                assert name == "csm-gateway" and other["containerResource"]["name"] == "cpu"
                assert 0.4 < quantity(other["containerResource"]["target"]["averageValue"]) < 0.9
    for manifest in of_kind(manifests, "ScaledObject"):
        autoscaled.add(manifest["spec"]["scaleTargetRef"]["name"])
        thresholds = {trigger["name"]: trigger for trigger in manifest["spec"]["triggers"]}
        assert thresholds.keys() == {"queue", "slots"}
        place = manifest["metadata"]["namespace"]
        for name, metric in (("queue", "csm_backbone_queue_depth"), ("slots", "csm_backbone_slots_active")):
            asked = thresholds[name]["metadata"]
            assert asked["query"] == f'sum({metric}{{namespace="{place}"}})'
            # The Prometheus that the NetworkPolicies let in, by the name that its operator gives it.
            address = urlsplit(asked["serverAddress"])
            assert (address.scheme, address.netloc, address.path) == ("http", "prometheus-operated.monitoring:9090", "")
        assert 0 < float(thresholds["queue"]["metadata"]["threshold"]) < queue
        assert slots / 2 <= float(thresholds["slots"]["metadata"]["threshold"]) < slots
        assert all(trigger["metricType"] == "AverageValue" for trigger in thresholds.values())
        # KEDA's default takes an empty answer for 0, and shrinks to the least under full load.
        assert all(trigger["metadata"]["ignoreNullValues"] == "false" for trigger in thresholds.values())
        spec = manifest["spec"]
        assert spec["minReplicaCount"] <= spec["fallback"]["replicas"] <= spec["maxReplicaCount"]
    assert autoscaled <= {f"csm-{name}" for name in PLACES}
    # Every stream of the largest number of backbones finds a place in the stages behind.
    scaled = {m["spec"]["scaleTargetRef"]["name"]: m["spec"] for m in of_kind(manifests, "HorizontalPodAutoscaler")}
    most = [spec["maxReplicas"] for name, spec in scaled.items() if name == "csm-backbone"]
    most += [m["spec"]["maxReplicaCount"] for m in of_kind(manifests, "ScaledObject")]
    for replicas in most:
        for service, places in (("codec", "slots"), ("watermark", "streams")):
            own = (
                scaled.get(f"csm-{service}", {}).get("maxReplicas")
                or deployment(manifests, service)["spec"]["replicas"]
            )
            behind = own * getattr(settings_of(manifests, service), places)
            assert replicas * slots <= behind, f"{service} has {behind} places for {replicas * slots} streams"
    for service in SERVICES:
        fixed = "replicas" in deployment(manifests, service)["spec"]
        assert fixed != (f"csm-{service}" in autoscaled), f"who says how many {service} there are?"
