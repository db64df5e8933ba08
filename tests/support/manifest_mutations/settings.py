"""Mutations of rendered manifests, each of which some check must find. Settings, secrets, certificates, weights."""

from __future__ import annotations

from support.manifest_mutations.mutation import Mutation, drop, give_secret, model_map, settings_map, variable, volume
from support.manifests.rendered import container, deployment, one

SETTINGS: dict[str, Mutation] = {
    "unknown variable": lambda m: variable(m, "gateway", "CSM_MAX_REQUEST_S").update(name="CSM_MAX_REQUESTS"),
    "value beyond its limit": lambda m: variable(m, "backbone", "CSM_BACKBONE_SLOTS").update(value="0"),
    "value of another kind": lambda m: settings_map(m).update(CSM_GRACE_S="long"),
    "unknown variable for all": lambda m: settings_map(m).update(CSM_DRAINS="5"),
    "another service's setting": lambda m: variable(m, "codec", "CSM_CODEC_SLOTS").update(name="CSM_BACKBONE_SLOTS"),
    "no such ConfigMap": lambda m: container(deployment(m, "codec"))["envFrom"][0]["configMapRef"].update(name="csm"),
    "no such Secret": lambda m: volume(m, "watermark", "key")["secret"].update(secretName="csm-key"),
    "key in a variable": lambda m: container(deployment(m, "watermark"))["env"].append(
        {"name": "CSM_WATERMARK_KEY", "valueFrom": {"secretKeyRef": {"name": "csm-watermark-key", "key": "key"}}}
    ),
    "certificate for another name": lambda m: one(m, "Certificate", "csm-codec")["spec"].update(dnsNames=["codec"]),
    "key elsewhere": lambda m: variable(m, "watermark", "CSM_WATERMARK_KEY_FILE").update(value="/etc/csm/key"),
    "no such file in the Secret": lambda m: variable(m, "codec", "CSM_TLS_KEY_FILE").update(
        value="/etc/csm/tls/key.pem"
    ),
    "one stage in plaintext": lambda m: [
        variable(m, "codec", name).update(value="") for name in ("CSM_TLS_CERT_FILE", "CSM_TLS_KEY_FILE")
    ],
    "TLS and plaintext": lambda m: settings_map(m).update(CSM_INSECURE="plaintext"),
    "a stage that asks no certificate": lambda m: variable(m, "codec", "CSM_TLS_CLIENT_CA_FILE").update(value=""),
    "the gateway trusts anybody": lambda m: variable(m, "gateway", "CSM_UPSTREAM_CA_FILE").update(value=""),
    "no tokens": lambda m: variable(m, "gateway", "CSM_TOKENS_FILE").update(value=""),
    "the hub asked by a pod": lambda m: settings_map(m).pop("HF_HUB_OFFLINE"),
    "weights of another bundle": lambda m: model_map(m).update(CSM_MODEL="embedded"),
    "a model where csm-model overrides it": lambda m: settings_map(m).update(CSM_MODEL="embedded"),
    "claim of another": lambda m: volume(m, "codec", "weights")["persistentVolumeClaim"].update(claimName="weights"),
    "token of the hub in the collector": lambda m: container(one(m, "Deployment", "csm-collector"))["env"].append(
        {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "csm-hub", "key": "token"}}}
    ),
    "token of the hub as it is": lambda m: container(one(m, "Job", "csm-weights"))["env"].append(
        {"name": "HF_TOKEN", "value": "hf_0"}
    ),
    "the watermark's key in the codec": lambda m: give_secret(m, "codec", "csm-watermark-key"),
    "callers' tokens in a stage": lambda m: give_secret(m, "backbone", "csm-tokens"),
    "another's certificate": lambda m: volume(m, "codec", "tls")["secret"].update(secretName="csm-backbone-tls"),
    "the authority's own key": lambda m: give_secret(m, "gateway", "csm-authority"),
    "key beside its file": lambda m: container(deployment(m, "watermark"))["env"].append(
        {"name": "CSM_WATERMARK_KEY", "value": "7a1c94e35b"}
    ),
    "a pod that rules the cluster": lambda m: m.append(
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": "csm"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
            "subjects": [{"kind": "ServiceAccount", "name": "csm-gateway", "namespace": "csm"}],
        }
    ),
    "an authority with a new key": lambda m: one(m, "Certificate", "csm-authority")["spec"]["privateKey"].update(
        rotationPolicy="Always"
    ),
}

# Of overlays/cpu-dev.
DEV: dict[str, Mutation] = {
    "no names": lambda m: drop(m, "NetworkPolicy", "gateway-dns"),  # elsewhere the collector's policy has them too,
    "no such claim": lambda m: one(m, "PersistentVolumeClaim", "csm-weights")["metadata"].update(name="csm"),
    "tokens beside no-tokens": lambda m: container(deployment(m, "gateway"))["env"].append(
        {"name": "CSM_TOKENS_FILE", "value": "/etc/csm/tokens/tokens.toml"}
    ),
}
