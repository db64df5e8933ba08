"""Schemas of the kinds that are no part of Kubernetes, from the CustomResourceDefinitions of their own projects.

tests/data/crds has them, and says from where. Run with the folders of the projects' sources, to take newer ones:

    python tests/support/manifests/custom_resources.py gateway-api=FOLDER keda=FOLDER …

What a CRD says in CEL (x-kubernetes-validations) only a control plane can judge.
"""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path
from typing import Any

import jsonschema
import yaml
from jsonschema import Draft202012Validator

FOLDER = Path(__file__).parents[2] / "data" / "crds"
# Project → its definitions, from the top of its sources.
SOURCES = {
    "gateway-api": [
        f"config/crd/standard/gateway.networking.k8s.io_{kind}.yaml"
        for kind in ("backendtlspolicies", "gateways", "grpcroutes", "httproutes")
    ],
    "keda": ["config/crd/bases/keda.sh_scaledobjects.yaml"],
    "envoy-gateway": [
        f"charts/gateway-helm/charts/crds/crds/generated/gateway.envoyproxy.io_{kind}.yaml"
        for kind in ("backendtrafficpolicies", "clienttrafficpolicies", "securitypolicies")
    ],
    "cert-manager": [f"deploy/crds/cert-manager.io_{kind}.yaml" for kind in ("certificates", "issuers")],
    "prometheus-operator": [
        f"example/prometheus-operator-crd/monitoring.coreos.com_{kind}.yaml" for kind in ("podmonitors", "prometheusrules")
    ],
    "external-secrets": [f"config/crds/bases/external-secrets.io_{kind}.yaml" for kind in ("externalsecrets", "secretstores")],
}  # fmt: skip


@functools.cache
def schemas() -> dict[tuple[str, str], jsonschema.Validator]:
    """(apiVersion, kind) → its schema, which knows no field but those of the definition."""
    found: dict[tuple[str, str], jsonschema.Validator] = {}
    for path in sorted(FOLDER.glob("*.json")):
        for each in json.loads(path.read_text()):
            found[each["apiVersion"], each["kind"]] = Draft202012Validator(_strict(each["schema"], is_top=True))
    return found


def check(manifest: dict[str, Any]) -> None:
    """Raises: jsonschema.ValidationError; KeyError for a kind that is not there."""
    schemas()[manifest["apiVersion"], manifest["kind"]].validate(manifest)


def _strict(schema: dict[str, Any], *, is_top: bool = False) -> dict[str, Any]:
    """An OpenAPI schema as a control plane with fieldValidation=Strict applies it."""
    strict = {key: value for key, value in schema.items() if not key.startswith("x-") and key != "nullable"}
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    if "(?i)" in (pattern := schema.get("pattern", "")):  # Go takes the flag anywhere
        strict["pattern"] = "(?i)" + pattern.replace("(?i)", "")
    for word in ("properties", "patternProperties"):
        if word in schema:
            strict[word] = {name: _strict(each) for name, each in schema[word].items()}
    for word in ("items", "additionalProperties"):
        if isinstance(schema.get(word), dict):
            strict[word] = _strict(schema[word])
    if (
        "properties" in schema
        and "additionalProperties" not in schema
        and not schema.get("x-kubernetes-preserve-unknown-fields")
    ):
        strict["additionalProperties"] = False
    if is_top:
        strict["properties"]["metadata"] = {"type": "object"}
    if schema.get("nullable"):
        strict = {"anyOf": [strict, {"type": "null"}]}
    return strict


def _without_words(schema: Any) -> Any:
    """Descriptions and rules in CEL left out: nine tenths of a definition."""
    if isinstance(schema, list):
        return [_without_words(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: {name: _without_words(each) for name, each in value.items()} if key == "properties" else _without_words(value)
        for key, value in schema.items()
        if not (key == "description" and isinstance(value, str)) and key != "x-kubernetes-validations"
    }  # fmt: skip


def main() -> None:
    for argument in sys.argv[1:]:
        project, _, folder = argument.partition("=")
        kept = []
        for name in SOURCES[project]:
            (crd,) = [each for each in yaml.safe_load_all((Path(folder) / name).read_text()) if each]
            for version in crd["spec"]["versions"]:
                if version["served"]:
                    kept.append({
                        "apiVersion": f"{crd['spec']['group']}/{version['name']}",
                        "kind": crd["spec"]["names"]["kind"],
                        "schema": _without_words(version["schema"]["openAPIV3Schema"]),
                    })  # fmt: skip
        text = "[\n" + ",\n".join(json.dumps(each, sort_keys=True, separators=(",", ":")) for each in kept) + "\n]\n"
        (FOLDER / f"{project}.json").write_text(text)


if __name__ == "__main__":
    main()
