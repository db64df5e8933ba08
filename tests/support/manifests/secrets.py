"""Who holds which secret, and shows what to whom. For checks.py."""

from __future__ import annotations

from support.manifests.rendered import (
    SERVICES,
    STAGES,
    Manifests,
    container,
    containers,
    deployment,
    environ,
    fetching,
    of_kind,
    one,
    pod,
    pods,
    settings_of,
)

# Secret → the pods that may have it. Made by the operator, or by cert-manager; never in a repository, but
# for the key of overlays/cpu-dev, whose name ends in a hash.
SECRETS = {
    "csm-watermark-key": {"csm-watermark"},
    "csm-tokens": {"csm-gateway"},
    "csm-hub": {"csm-weights"},
    "csm-store": {"csm-weights", "csm-gateway"},
} | {f"csm-{name}-tls": {f"csm-{name}"} for name in (*SERVICES, "http")}


def owners(manifests: Manifests, secret: str) -> set[str]:
    """Names of the pods that may have it; a Secret of another name is refused."""
    if secret in {m["metadata"]["name"] for m in of_kind(manifests, "Secret")}:
        secret = secret.rpartition("-")[0]  # less the hash
    return SECRETS.get(secret, set())


def check_references(manifests: Manifests) -> None:
    """ConfigMaps, Secrets and volumes that are named are here, or are the known ones from outside, of the right pods."""
    here = {(m["kind"], m["metadata"]["name"]) for m in manifests}
    for manifest in pods(manifests):
        pod_name = manifest["metadata"]["name"]
        run = containers(manifest)
        named = [("ConfigMap", source["configMapRef"]["name"]) for spec in run for source in spec.get("envFrom", [])]
        for entry in [entry for spec in run for entry in spec.get("env", [])]:
            assert {"value", "valueFrom"} & entry.keys() == entry.keys() - {"name"}
            reference = entry.get("valueFrom", {}).get("secretKeyRef")
            if reference:
                # A variable is seen by every child and in every dump: secrets are files, but for the hub's client.
                assert entry["name"] == "HF_TOKEN"
                named.append(("Secret", reference["name"]))
            else:
                assert entry["name"] not in ("HF_TOKEN", "CSM_WATERMARK_KEY"), f"{pod_name}: a secret in the manifest"
        for volume in pod(manifest)["volumes"]:
            if "secret" in volume:
                assert volume["secret"].get("optional", False) is False
                named.append(("Secret", volume["secret"]["secretName"]))
            if "configMap" in volume:
                named.append(("ConfigMap", volume["configMap"]["name"]))
            if "persistentVolumeClaim" in volume:
                named.append(("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]))
        for kind, name in named:
            if kind == "Secret":
                allowed = owners(manifests, name)
                if "csm-weights" in allowed:
                    allowed = allowed | {m["metadata"]["name"] for m, _ in fetching(manifests)}
                assert pod_name in allowed, f"{pod_name} has the Secret {name}"
            else:
                assert (kind, name) in here, f"no {kind} {name}"
    for manifest in of_kind(manifests, "Certificate"):
        spec = manifest["spec"]
        if "dnsNames" in spec:
            service = manifest["metadata"]["name"]
            assert one(manifests, "Service", service) and service in spec["dnsNames"]
            assert service in SECRETS[spec["secretName"]]
        else:  # the authority: with another key, it would not be trusted by who was renewed before it
            assert spec["isCA"] is True and spec["privateKey"]["rotationPolicy"] == "Never"
            assert not any(
                spec["secretName"] == v.get("secret", {}).get("secretName")
                for p in pods(manifests)
                for v in pod(p)["volumes"]
            )


def check_files_lie_where_settings_say(manifests: Manifests) -> None:
    for service in SERVICES:
        manifest = deployment(manifests, service)
        volumes = {volume["name"]: volume for volume in pod(manifest)["volumes"]}
        mounted = {mount["mountPath"]: volumes[mount["name"]] for mount in container(manifest)["volumeMounts"]}
        for name, value in environ(manifests, manifest).items():
            if name.endswith("_FILE"):
                folder, _, file = value.rpartition("/")
                assert "secret" in mounted[folder], f"{service}: {name}={value}"
                inside = {
                    "CSM_WATERMARK_KEY_FILE": "key",
                    "CSM_TOKENS_FILE": "tokens.toml",
                    "AWS_SHARED_CREDENTIALS_FILE": "credentials",
                }.get(name)
                assert file == inside if inside else file in ("tls.crt", "tls.key", "ca.crt")


def check_who_may_come_in(manifests: Manifests) -> None:
    """Every server either has TLS or says by name that it has none; the same for tokens at the gateway."""
    for service in SERVICES:
        settings = settings_of(manifests, service)
        open_by_name = (settings.insecure or "").split(",")
        assert bool(settings.tls_cert_file) != ("plaintext" in open_by_name), f"{service} would not start"
        assert bool(settings.tls_cert_file) == bool(settings.tls_key_file)
    gateway = settings_of(manifests, "gateway")
    assert bool(gateway.tokens_file) != ("no-tokens" in (gateway.insecure or "").split(","))
    served_by_tls = {bool(settings_of(manifests, stage).tls_cert_file) for stage in STAGES}
    assert served_by_tls == {bool(gateway.upstream_ca_file)}
    asked = {bool(settings_of(manifests, stage).tls_client_ca_file) for stage in STAGES}
    assert asked == {bool(gateway.upstream_cert_file)} == {bool(gateway.upstream_key_file)}
