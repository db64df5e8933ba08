"""Mutations of the HTTP face, of browsers' way in, and of secrets that come from outside."""

from __future__ import annotations

from support.manifest_mutations.mutation import Mutation
from support.manifests.rendered import Manifest, Manifests, container, of_kind, one, pod


def face(manifests: Manifests) -> Manifest:
    return one(manifests, "Deployment", "csm-http")


def variable(manifests: Manifests, name: str) -> Manifest:
    (entry,) = (entry for entry in container(face(manifests))["env"] if entry["name"] == name)
    return entry


def secret_volume(manifest: Manifest) -> Manifest:
    (found,) = (volume["secret"] for volume in pod(manifest)["volumes"] if "secret" in volume)
    return found


HTTP: dict[str, Mutation] = {
    "the face trusts no authority": lambda m: container(face(m))["env"].remove(variable(m, "CSM_HTTP_GATEWAY_CA_FILE")),
    "the face asks a stage": lambda m: variable(m, "CSM_HTTP_GATEWAY_ADDRESS").update(value="csm-codec:50053"),
    "the face reads no such setting": lambda m: variable(m, "CSM_HTTP_TIMEOUT_S").update(name="CSM_HTTP_TIMEOUT"),
    "requests longer than a stop": lambda m: variable(m, "CSM_HTTP_TIMEOUT_S").update(value="600"),
    "a probe by another path": lambda m: container(face(m))["livenessProbe"]["httpGet"].update(path="/health"),
    "a probe in plaintext": lambda m: container(face(m))["readinessProbe"]["httpGet"].pop("scheme"),
    "the face in another image": lambda m: container(face(m)).update(image="csm-gateway:old"),
    "the face is cut off": lambda m: pod(face(m)).update(terminationGracePeriodSeconds=60),
    "the face has another's certificate": lambda m: secret_volume(face(m)).update(secretName="csm-gateway-tls"),
    "the face is not let in": lambda m: m.remove(one(m, "NetworkPolicy", "http-to-gateway")),
    "the face may go anywhere": lambda m: one(m, "NetworkPolicy", "http-egress")["spec"]["egress"][0].pop("to"),
    "a route without the voices": lambda m: of_kind(m, "GRPCRoute")[0]["spec"]["rules"][0]["matches"].pop(1),
    "a route to a stage": lambda m: of_kind(m, "GRPCRoute")[0]["spec"]["rules"][0]["matches"].append(
        {"method": {"service": "csm.codec.v1.CodecService"}}
    ),
    "a secret by another key": lambda m: one(m, "ExternalSecret", "csm-tokens")["spec"]["data"][0].update(
        secretKey="tokens"
    ),
    "a secret that no pod mounts": lambda m: one(m, "ExternalSecret", "csm-hub")["spec"]["target"].update(
        name="csm-hubs"
    ),
    "an autoscaler of the wrong series": lambda m: one(m, "HorizontalPodAutoscaler", "csm-codec")["spec"]["metrics"][0][
        "pods"
    ]["metric"].update(name="csm_watermark_streams_active"),
    "an event loop that is never so busy": lambda m: one(m, "HorizontalPodAutoscaler", "csm-gateway")["spec"][
        "metrics"
    ][-1]["containerResource"]["target"].update(averageValue="2"),
}
